package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

func (s *Server) secretImports() {
	const tag = "Secrets"
	huma.Register(s.huma, op("list-stores", http.MethodGet, "/v1/secret-store-kinds", tag, "List the kinds of other vaults that secrets are imported from"), s.listStores)
	huma.Register(s.huma, op("import-secrets", http.MethodPost, "/v1/secret-imports", tag, "Copy secrets from another vault; what was changed here is not overwritten"), s.importSecrets)
}

// A storeKind is what one has to know of another vault.
type storeKind struct {
	Name    string         `json:"name"`
	Title   string         `json:"title"`
	Address string         `json:"address" doc:"How an address looks"`
	Login   string         `json:"login" doc:"What logs in there"`
	Options []engine.Field `json:"options" nullable:"false"`
}

func (s *Server) listStores(context.Context, *struct{}) (*many[storeKind], error) {
	list := []storeKind{}
	for _, k := range s.Imports.Kinds() {
		list = append(list, storeKind{k.Name, k.Title, k.Address, k.Login, k.Options})
	}
	return pageOf(list, ""), nil
}

func (s *Server) importSecrets(ctx context.Context, in *struct{ Body upstream.Order }) (*one[upstream.Report], error) {
	r, err := s.Imports.Run(ctx, callerOf(ctx), in.Body)
	return &one[upstream.Report]{r}, s.problem(ctx, err)
}
