package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/upstream"
)

func (s *Server) secretStores() {
	const tag = "Secrets"
	huma.Register(s.huma, op("list-secret-stores", http.MethodGet, "/v1/secret-stores", tag, "List the other vaults that are registered"), s.listSecretStores)
	huma.Register(s.huma, op("put-secret-store", http.MethodPut, "/v1/secret-stores/{name}", tag, "Register another vault, or change the one of this name"), s.putSecretStore)
	huma.Register(s.huma, op("get-secret-store", http.MethodGet, "/v1/secret-stores/{name}", tag, "Show another vault, what is read through it, and what is pushed to it"), s.getSecretStore)
	huma.Register(s.huma, op("remove-secret-store", http.MethodDelete, "/v1/secret-stores/{name}", tag, "Remove another vault that nothing is read through or pushed to"), s.removeSecretStore)
	huma.Register(s.huma, op("check-secret-store", http.MethodPost, "/v1/secret-stores/{name}/check", tag, "See whether another vault answers and lets us in"), s.checkSecretStore)

	huma.Register(s.huma, op("link-secret", http.MethodPost, "/v1/secret-links", tag, "Have a secret, or a folder of them, be read through another vault"), s.linkSecret)
	huma.Register(s.huma, op("unlink-secret", http.MethodDelete, "/v1/secret-links", tag, "Have the value of a secret live here again, or link no more of a folder"), s.unlinkSecret)

	huma.Register(s.huma, op("list-secret-syncs", http.MethodGet, "/v1/secret-syncs", tag, "List which secrets are pushed to other vaults, and whether they are there"), s.listSecretSyncs)
	huma.Register(s.huma, op("create-secret-sync", http.MethodPost, "/v1/secret-syncs", tag, "Push a secret to another vault from now on; what stands there is not overwritten"), s.createSecretSync)
	huma.Register(s.huma, op("get-secret-sync", http.MethodGet, "/v1/secret-syncs/{id}", tag, "Show how a sync stands"), s.getSecretSync)
	huma.Register(s.huma, op("remove-secret-sync", http.MethodDelete, "/v1/secret-syncs/{id}", tag, "Push a secret no longer; what stands there stays"), s.removeSecretSync)
	huma.Register(s.huma, op("accept-secret-sync", http.MethodPost, "/v1/secret-syncs/{id}/accept", tag, "Make what somebody else wrote there the next version of the secret here"), s.acceptSecretSync)
	huma.Register(s.huma, op("overwrite-secret-sync", http.MethodPost, "/v1/secret-syncs/{id}/overwrite", tag, "Replace what somebody else wrote there by the current version"), s.overwriteSecretSync)
}

func (s *Server) listSecretStores(ctx context.Context, in *Paging) (*many[upstream.NamedStore], error) {
	list, err := s.Stores.List(ctx, callerOf(ctx), in.Cursor, in.Limit)
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Name
	}
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) putSecretStore(ctx context.Context, in *struct {
	LeasePath
	Body upstream.StoreSpec
},
) (*one[upstream.NamedStore], error) {
	if in.Body.Name != in.Name {
		return nil, s.problem(ctx, upstream.ErrInvalid.With("The path says %q and the body %q; a store is named once and for good.", in.Name, in.Body.Name).At("name"))
	}
	x, err := s.Stores.Put(ctx, callerOf(ctx), in.Body)
	return &one[upstream.NamedStore]{x}, s.problem(ctx, err)
}

func (s *Server) getSecretStore(ctx context.Context, in *LeasePath) (*one[upstream.Standing], error) {
	x, err := s.Stores.Get(ctx, callerOf(ctx), in.Name)
	return &one[upstream.Standing]{x}, s.problem(ctx, err)
}

func (s *Server) removeSecretStore(ctx context.Context, in *LeasePath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Stores.Remove(ctx, callerOf(ctx), in.Name))
}

func (s *Server) checkSecretStore(ctx context.Context, in *struct {
	LeasePath
	Body struct {
		Path string `json:"path,omitempty" maxLength:"400" doc:"A path there that we may ask for; it need not be there"`
	}
},
) (*struct{}, error) {
	return nil, s.problem(ctx, s.Stores.Check(ctx, callerOf(ctx), in.Name, in.Body.Path))
}

func (s *Server) linkSecret(ctx context.Context, in *struct{ Body upstream.LinkSpec }) (*one[upstream.Filled], error) {
	x, err := s.Stores.Link(ctx, callerOf(ctx), in.Body)
	return &one[upstream.Filled]{x}, s.problem(ctx, err)
}

func (s *Server) unlinkSecret(ctx context.Context, in *SecretPath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Stores.Unlink(ctx, callerOf(ctx), in.Path))
}

// A secretSync is a sync of secrets. There may be others.
type secretSync upstream.Sync

func (s *Server) listSecretSyncs(ctx context.Context, in *struct {
	Paging
	Path  string `query:"path" doc:"Only those of the secret at this path"`
	Store string `query:"store" doc:"Only those to this store"`
	State string `query:"state" enum:"synced,behind,drift" doc:"Only those that stand like this"`
	Late  bool   `query:"overdue" doc:"Only those where the current version should be and is not"`
},
) (*many[secretSync], error) {
	f := upstream.SyncFilter{Path: in.Path, Store: in.Store, State: upstream.SyncState(in.State), Late: in.Late}
	list, err := s.Stores.Syncs(ctx, callerOf(ctx), f, in.Cursor, in.Limit)
	next, all := "", make([]secretSync, 0, len(list))
	for _, x := range list {
		all = append(all, secretSync(x))
	}
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].ID
	}
	return pageOf(all, next), s.problem(ctx, err)
}

func (s *Server) secretSync(ctx context.Context, x upstream.Sync, err error) (*one[secretSync], error) {
	return &one[secretSync]{secretSync(x)}, s.problem(ctx, err)
}

func (s *Server) createSecretSync(ctx context.Context, in *struct{ Body upstream.SyncSpec }) (*one[secretSync], error) {
	x, err := s.Stores.Sync(ctx, callerOf(ctx), in.Body)
	return s.secretSync(ctx, x, err)
}

func (s *Server) getSecretSync(ctx context.Context, in *LeaseID) (*one[secretSync], error) {
	x, err := s.Stores.GetSync(ctx, callerOf(ctx), in.ID)
	return s.secretSync(ctx, x, err)
}

func (s *Server) removeSecretSync(ctx context.Context, in *LeaseID) (*struct{}, error) {
	return nil, s.problem(ctx, s.Stores.RemoveSync(ctx, callerOf(ctx), in.ID))
}

func (s *Server) acceptSecretSync(ctx context.Context, in *LeaseID) (*one[secretSync], error) {
	x, err := s.Stores.Accept(ctx, callerOf(ctx), in.ID)
	return s.secretSync(ctx, x, err)
}

func (s *Server) overwriteSecretSync(ctx context.Context, in *struct {
	LeaseID
	Body struct {
		Reason string `json:"reason" maxLength:"500" doc:"Why what somebody else wrote there is to be lost"`
	}
},
) (*one[secretSync], error) {
	x, err := s.Stores.Overwrite(ctx, callerOf(ctx), in.ID, in.Body.Reason)
	return s.secretSync(ctx, x, err)
}
