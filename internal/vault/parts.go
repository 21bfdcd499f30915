package vault

import (
	"estover.dev/internal/device"
	"estover.dev/internal/mount"
	"estover.dev/internal/pki"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/database"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/transit"
	"estover.dev/internal/ticket"
)

// Parts are the packages that the door speaks for.
type Parts struct {
	Mounts    *mount.Mounts
	Policies  *mount.Policies
	Secrets   *secret.Secrets
	Tickets   *ticket.Tickets
	Leases    *lease.Leases
	Databases *database.Databases
	PKI       *pki.PKI
	Transit   *transit.Transit
	Devices   *device.Devices
}

// areas lists every route there is.
func (d *Door) areas() []Route {
	var all []Route
	for _, area := range [][]Route{
		d.status(), d.mounts(), d.authMounts(), d.policies(), d.audit(),
		d.tickets(), d.appRoles(), d.jwts(), d.certs(), d.wrapping(), d.leases(), d.databases(),
		d.kv2(), d.kv1(), d.pkiRoutes(), d.sshCertificates(), d.transitKeys(),
	} {
		all = append(all, area...)
	}
	return all
}
