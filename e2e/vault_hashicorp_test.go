package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	hashi "github.com/hashicorp/vault/api"
)

// useVault is what a program of somebody's does with the client of Vault, as its
// documentation shows.
func useVault(t *testing.T, address, ca, token string) {
	ctx := t.Context()
	config := hashi.DefaultConfig()
	config.Address = address
	must(t, config.ConfigureTLS(&hashi.TLSConfig{CACert: ca}))
	c, err := hashi.NewClient(config)
	must(t, err)
	c.SetToken(token)

	health, err := c.Sys().Health()
	must(t, err)
	status, err := c.Sys().SealStatus()
	must(t, err)
	leader, err := c.Sys().Leader()
	must(t, err)
	started, err := c.Sys().InitStatus()
	must(t, err)
	if health.Version != "1.15.0" || status.Version != health.Version || health.Sealed || status.Sealed || !leader.IsSelf || !started || health.ClusterID == "" {
		t.Errorf("the server stands like this: %+v %+v %+v", health, status, leader)
	}

	// Mounts.
	name := "team-" + strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])
	must(t, c.Sys().Mount(name, &hashi.MountInput{Type: "kv-v2", Description: "of the team", Config: hashi.MountConfigInput{MaxLeaseTTL: "2h", ListingVisibility: "hidden"}}))
	mounts, err := c.Sys().ListMounts()
	must(t, err)
	if m := mounts[name+"/"]; m == nil || m.Type != "kv" || m.Options["version"] != "2" || m.Config.MaxLeaseTTL != 7200 || mounts["sys/"] == nil {
		t.Errorf("the mount is listed as %+v", m)
	}
	//lint:ignore SA1019 clients that were written before it was deprecated still call it
	must(t, c.Sys().TuneMount(name, hashi.MountConfigInput{DefaultLeaseTTL: "30m", MaxLeaseTTL: "7200s"}))
	tuned, err := c.Sys().MountConfig(name)
	must(t, err)
	if tuned.DefaultLeaseTTL != 1800 || tuned.MaxLeaseTTL != 7200 {
		t.Errorf("the tuned mount is %+v", tuned)
	}
	if err := c.Sys().Mount(name, &hashi.MountInput{Type: "kv"}); err == nil || !strings.Contains(err.Error(), "path is already in use at "+name+"/") {
		t.Errorf("mounting twice: %v", err)
	}

	// Secrets with versions.
	kv := c.KVv2(name)
	first, err := kv.Put(ctx, "app/db", map[string]any{"user": "ann", "port": 5432, "tags": []string{"a"}})
	must(t, err)
	if first.VersionMetadata.Version != 1 || time.Since(first.VersionMetadata.CreatedTime).Abs() > time.Minute {
		t.Errorf("the first version is %+v", first.VersionMetadata)
	}
	_, err = kv.Put(ctx, "app/db", map[string]any{"user": "bob"}, hashi.WithCheckAndSet(0))
	var refused *hashi.ResponseError
	if !errors.As(err, &refused) || refused.StatusCode != http.StatusBadRequest || !strings.Contains(refused.Errors[0], "check-and-set parameter did not match") {
		t.Errorf("a conditional write: %v", err)
	}
	_, err = kv.Put(ctx, "app/db", map[string]any{"user": "bob", "port": 1}, hashi.WithCheckAndSet(1))
	must(t, err)
	_, err = kv.Patch(ctx, "app/db", map[string]any{"port": nil, "host": "h"})
	must(t, err)
	_, err = kv.Patch(ctx, "app/db", map[string]any{"more": 1}, hashi.WithMergeMethod(hashi.KVMergeMethodReadWrite))
	must(t, err)
	got, err := kv.Get(ctx, "app/db")
	must(t, err)
	if fmt.Sprint(got.Data) != "map[host:h more:1 user:bob]" || got.VersionMetadata.Version != 4 {
		t.Errorf("patched twice it is %v, version %d", got.Data, got.VersionMetadata.Version)
	}
	if got, err = kv.GetVersion(ctx, "app/db", 1); err != nil || fmt.Sprint(got.Data) != "map[port:5432 tags:[a] user:ann]" {
		t.Errorf("the first version is %v, %v", got, err)
	}
	must(t, kv.PutMetadata(ctx, "app/db", hashi.KVMetadataPutInput{MaxVersions: 5, DeleteVersionAfter: 3 * time.Hour, CustomMetadata: map[string]any{"team": "blue", "tier": "1"}}))
	must(t, kv.PatchMetadata(ctx, "app/db", hashi.KVMetadataPatchInput{CustomMetadata: map[string]any{"tier": nil}}))
	meta, err := kv.GetMetadata(ctx, "app/db")
	must(t, err)
	if meta.CurrentVersion != 4 || meta.MaxVersions != 5 || meta.DeleteVersionAfter != 3*time.Hour || fmt.Sprint(meta.CustomMetadata) != "map[team:blue]" || len(meta.Versions) != 4 {
		t.Errorf("the metadata is %+v", meta)
	}
	must(t, kv.Delete(ctx, "app/db"))
	if got, err = kv.Get(ctx, "app/db"); err != nil || got.Data != nil || got.VersionMetadata.DeletionTime.IsZero() {
		t.Errorf("the deleted version: %+v, %v", got, err)
	}
	must(t, kv.Undelete(ctx, "app/db", []int{4}))
	must(t, kv.Destroy(ctx, "app/db", []int{2, 3}))
	must(t, kv.DeleteVersions(ctx, "app/db", []int{1}))
	must(t, kv.Undelete(ctx, "app/db", []int{1}))
	back, err := kv.Rollback(ctx, "app/db", 1)
	must(t, err)
	if back.VersionMetadata.Version != 5 {
		t.Errorf("rolled back to %+v", back.VersionMetadata)
	}
	versions, err := kv.GetVersionsAsList(ctx, "app/db")
	must(t, err)
	if len(versions) != 5 || !versions[1].Destroyed || versions[4].Destroyed {
		t.Errorf("the versions are %+v", versions)
	}
	if _, err = kv.Get(ctx, "nothing"); !errors.Is(err, hashi.ErrSecretNotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}

	// Lists, and what one finds by itself with a path alone.
	keys, err := c.Logical().List(name + "/metadata/")
	must(t, err)
	if fmt.Sprint(keys.Data["keys"]) != "[app/]" {
		t.Errorf("the list is %v", keys.Data)
	}
	if keys, err = c.Logical().List(name + "/metadata/nothing"); keys != nil || err != nil {
		t.Errorf("a list of nothing is %v, %v", keys, err)
	}
	found, err := c.Logical().Read("sys/internal/ui/mounts/" + name + "/app/db")
	must(t, err)
	if found.Data["path"] != name+"/" {
		t.Errorf("the mount of a path is %v", found.Data)
	}
	must(t, kv.DeleteMetadata(ctx, "app/db"))

	// A move leaves what lies below.
	_, err = kv.Put(ctx, "x", map[string]any{"a": "b"})
	must(t, err)
	must(t, c.Sys().Remount(name, name+"-moved"))
	if got, err = c.KVv2(name+"-moved").Get(ctx, "x"); err != nil || got.Data["a"] != "b" {
		t.Errorf("after the move: %v, %v", got, err)
	}
	must(t, c.Sys().Unmount(name+"-moved"))

	// Secrets without versions.
	must(t, c.Sys().Mount(name+"-old", &hashi.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}))
	old := c.KVv1(name + "-old")
	must(t, old.Put(ctx, "a b/ü", map[string]any{"n": 1.5, "l": []any{"x"}, "ttl": "1m"}))
	one, err := old.Get(ctx, "a b/ü")
	must(t, err)
	if fmt.Sprint(one.Data) != "map[l:[x] n:1.5 ttl:1m]" || one.Raw.LeaseDuration != 60 || one.Raw.Renewable {
		t.Errorf("kv 1 gives %+v", one)
	}
	must(t, old.Delete(ctx, "a b/ü"))
	if _, err = old.Get(ctx, "a b/ü"); !errors.Is(err, hashi.ErrSecretNotFound) {
		t.Errorf("deleted in kv 1: %v", err)
	}
	must(t, c.Sys().Unmount(name+"-old"))

	// Policies, and what a token may do.
	text := "path \"secret/*\" {\n  capabilities = [\"read\"]\n}\n"
	must(t, c.Sys().PutPolicy(name, text))
	if read, err := c.Sys().GetPolicy(name); err != nil || read != text {
		t.Errorf("the policy reads %q, %v", read, err)
	}
	policies, err := c.Sys().ListPolicies()
	must(t, err)
	if !slices.Contains(policies, name) || !slices.Contains(policies, "default") || !slices.Contains(policies, "root") {
		t.Errorf("the policies are %v", policies)
	}
	if can, err := c.Sys().CapabilitiesSelf("secret/x"); err != nil || !reflect.DeepEqual(can, []string{"root"}) {
		t.Errorf("the token may %v, %v", can, err)
	}
	must(t, c.Sys().DeletePolicy(name))
	if read, err := c.Sys().GetPolicy(name); err != nil || read != "" {
		t.Errorf("the deleted policy reads %q, %v", read, err)
	}

	// Audit devices stand behind the log (V34).
	sink, told := audited(t)
	must(t, c.Sys().EnableAuditWithOptions(name, &hashi.EnableAuditOptions{Type: "socket", Description: "of the team", Options: map[string]string{"address": sink, "write_timeout": "1s"}}))
	devices, err := c.Sys().ListAudit()
	must(t, err)
	if d := devices[name+"/"]; d == nil || d.Type != "socket" || d.Description != "of the team" || d.Options["address"] != sink || d.Path != name+"/" {
		t.Errorf("the audit devices are %+v", devices)
	}
	hash, err := c.Sys().AuditHash(name, "hunter2")
	must(t, err)
	if !strings.HasPrefix(hash, "hmac-sha256:") || len(hash) != 76 {
		t.Errorf("a hash is %q", hash)
	}
	if l := told(); !strings.Contains(l, `"type":"response"`) {
		t.Errorf("the device is told %s", l)
	}
	must(t, c.Sys().DisableAudit(name))
	if devices, err = c.Sys().ListAudit(); err != nil || devices[name+"/"] != nil {
		t.Errorf("afterwards there are %+v, %v", devices, err)
	}

	// Without a good token nothing is said of what is there.
	nobody, err := c.Clone()
	must(t, err)
	nobody.SetToken("hvs.nonsense")
	for _, path := range []string{"secret/data/x", "nothing/at/all", "sys/mounts"} {
		if _, err := nobody.Logical().Read(path); !errors.As(err, &refused) || refused.StatusCode != http.StatusForbidden || refused.Errors[0] != "permission denied" {
			t.Errorf("with a token that is none, %s: %v", path, err)
		}
	}
}
