package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/seal"
)

func (s *Server) rootKeys() {
	const tag = "Keys"
	huma.Register(s.huma, op("list-root-keys", http.MethodGet, "/v1/root-keys", tag, "List the root keys, each of which opens the installation"), s.listRootKeys)
	huma.Register(s.huma, op("add-root-key", http.MethodPost, "/v1/root-keys", tag, "Register another root key beside those that there are"), s.addRootKey)
	huma.Register(s.huma, op("remove-root-key", http.MethodDelete, "/v1/root-keys/{id}", tag, "Take a root key's way in away"), s.removeRootKey)
	huma.Register(s.huma, op("rotate-root-key", http.MethodPost, "/v1/root-keys/rotate", tag, "Make a new key-encryption key and wrap every data key under it"), s.rotateRootKey)
}

func (s *Server) listRootKeys(ctx context.Context, _ *struct{}) (*many[seal.Root], error) {
	list, err := s.RootKeys.List(ctx, callerOf(ctx))
	return pageOf(list, ""), s.problem(ctx, err)
}

// A rootKey names one that was registered.
type rootKey struct {
	ID string `json:"id"`
}

func (s *Server) addRootKey(ctx context.Context, in *struct {
	Body struct {
		Source string `json:"source" minLength:"1" maxLength:"1000" doc:"Where the server gets it, as its flag --root-key says: file:PATH, tpm2:, …"`
	}
},
) (*one[rootKey], error) {
	id, err := s.RootKeys.Add(ctx, callerOf(ctx), in.Body.Source)
	return &one[rootKey]{rootKey{id}}, s.problem(ctx, err)
}

func (s *Server) removeRootKey(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (*struct{}, error) {
	return nil, s.problem(ctx, s.RootKeys.Remove(ctx, callerOf(ctx), in.ID))
}

func (s *Server) rotateRootKey(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, s.problem(ctx, s.RootKeys.Rotate(ctx, callerOf(ctx)))
}
