package db

import "estover.dev"

// A Place is where a row of some tenant is, for who looks in those of all tenants
// and then goes to each in a transaction of its own.
type Place struct {
	Tenant estover.TenantID
	ID     string
}

// ScanPlace makes one of a row of those two columns, in this order.
func ScanPlace(scan func(...any) error) (at Place, err error) {
	err = scan(&at.Tenant, &at.ID)
	return at, err
}
