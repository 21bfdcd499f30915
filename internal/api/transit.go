package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/transit"
)

func (s *Server) transitKeys() {
	const tag, at = "Keys that encrypt", "/v1/transit/keys"
	huma.Register(s.huma, op("list-transit-keys", http.MethodGet, at, tag, "List keys by name, never their secrets"), s.listTransit)
	huma.Register(s.huma, op("create-transit-key", http.MethodPost, at, tag, "Make a key"), s.createTransit)
	huma.Register(s.huma, op("show-transit-key", http.MethodGet, at+"/{id}", tag, "Show a key by name, with its public halves"), s.showTransit)
	huma.Register(s.huma, op("configure-transit-key", http.MethodPatch, at+"/{id}", tag, "Change the settings of a key"), s.configureTransit)
	huma.Register(s.huma, op("remove-transit-key", http.MethodDelete, at+"/{id}", tag, "Remove a key; nothing that it encrypted opens any more"), s.removeTransit)
	huma.Register(s.huma, op("rotate-transit-key", http.MethodPost, at+"/{id}/rotate", tag, "Give a key another version"), s.rotateTransit)
	huma.Register(s.huma, op("trim-transit-key", http.MethodPost, at+"/{id}/trim", tag, "Erase the versions below one, for good"), s.trimTransit)
	huma.Register(s.huma, op("export-transit-key", http.MethodPost, at+"/{id}/export", tag, "Show the secrets of a key that may be shown"), s.exportTransit)
	huma.Register(s.huma, op("import-transit-key", http.MethodPost, at+"/{id}/import", tag, "Take over a key that was wrapped for the wrapping key"), s.importTransit)
	huma.Register(s.huma, op("show-transit-wrapping-key", http.MethodGet, "/v1/transit/wrapping-key", tag, "Show the key for which one wraps a key to be imported"), s.wrappingKey)
	huma.Register(s.huma, op("encrypt", http.MethodPost, at+"/{id}/encrypt", tag, "Encrypt"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.Encrypt(ctx, callerOf(ctx), in.Mount, in.ID, in.items())
	}))
	huma.Register(s.huma, op("decrypt", http.MethodPost, at+"/{id}/decrypt", tag, "Decrypt; an event of its own"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.Decrypt(ctx, callerOf(ctx), in.Mount, in.ID, in.items())
	}))
	huma.Register(s.huma, op("rewrap", http.MethodPost, at+"/{id}/rewrap", tag, "Encrypt with the newest version what an older one has encrypted"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.Rewrap(ctx, callerOf(ctx), in.Mount, in.ID, in.items())
	}))
	huma.Register(s.huma, op("sign", http.MethodPost, at+"/{id}/sign", tag, "Sign; an event of its own"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.Sign(ctx, callerOf(ctx), in.Mount, in.ID, in.how(), in.items())
	}))
	huma.Register(s.huma, op("verify", http.MethodPost, at+"/{id}/verify", tag, "Say whether signatures hold, or with mac whether MACs do"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.Verify(ctx, callerOf(ctx), in.Mount, in.ID, in.how(), in.items(), in.Body.MAC)
	}))
	huma.Register(s.huma, op("hmac", http.MethodPost, at+"/{id}/hmac", tag, "Make a MAC"), s.transitItems(func(ctx context.Context, in *TransitItems) ([]transit.Result, error) {
		return s.Transit.HMAC(ctx, callerOf(ctx), in.Mount, in.ID, in.how(), in.items())
	}))
	huma.Register(s.huma, op("make-data-key", http.MethodPost, at+"/{id}/datakey", tag, "Make a key for use elsewhere, and encrypt it; an event of its own"), s.dataKey)
}

func (s *Server) listTransit(ctx context.Context, in *struct {
	Paging
	Mounted
},
) (*many[listedTransitKey], error) {
	list, err := s.Transit.Keys(ctx, callerOf(ctx), in.Mount, in.Cursor, in.Limit)
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Name
	}
	out := make([]listedTransitKey, len(list))
	for i := range list {
		out[i] = listedTransitKey{list[i]}
	}
	return pageOf(out, next), s.problem(ctx, err)
}

// A listedTransitKey is one of a list, after which the document names that.
type listedTransitKey struct{ transit.Key }

func (s *Server) createTransit(ctx context.Context, in *struct {
	Mounted
	Body struct {
		Name            string       `json:"name" minLength:"1" maxLength:"128"`
		Type            transit.Type `json:"type,omitempty" doc:"aes256-gcm96 if left out"`
		Derived         bool         `json:"derived,omitempty" doc:"Each context has a key of its own"`
		Convergent      bool         `json:"convergent,omitempty" doc:"The same plaintext in the same context gives the same ciphertext"`
		Exportable      bool         `json:"exportable,omitempty" doc:"The secret may be shown; not to be taken back"`
		DeletionAllowed bool         `json:"deletion_allowed,omitempty"`
		AutoRotate      int64        `json:"auto_rotate_seconds,omitempty" minimum:"0"`
		KeySize         int          `json:"key_size,omitempty" minimum:"0" doc:"Of hmac, in bytes"`
		Resource        string       `json:"resource,omitempty" doc:"With the action: what a grant has to cover for an agent to use the key"`
		Action          string       `json:"action,omitempty"`
	}
},
) (*one[transit.Key], error) {
	b := in.Body
	k, err := s.Transit.Create(ctx, callerOf(ctx), in.Mount, b.Name, b.Type, transit.Spec{
		Derived: b.Derived, Convergent: b.Convergent, Exportable: b.Exportable, DeletionAllowed: b.DeletionAllowed, AutoRotate: b.AutoRotate, KeySize: b.KeySize, Resource: b.Resource, Action: b.Action,
	})
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

func (s *Server) showTransit(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[transit.Key], error) {
	k, err := s.Transit.Get(ctx, callerOf(ctx), in.Mount, in.ID)
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

func (s *Server) configureTransit(ctx context.Context, in *struct {
	Named
	Mounted
	Body transit.Change
},
) (*one[transit.Key], error) {
	k, err := s.Transit.Configure(ctx, callerOf(ctx), in.Mount, in.ID, in.Body)
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

func (s *Server) removeTransit(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*struct{}, error) {
	return nil, s.problem(ctx, s.Transit.Remove(ctx, callerOf(ctx), in.Mount, in.ID))
}

func (s *Server) rotateTransit(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[transit.Key], error) {
	k, err := s.Transit.Rotate(ctx, callerOf(ctx), in.Mount, in.ID)
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

func (s *Server) trimTransit(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Oldest int64 `json:"min_available_version" minimum:"1" doc:"The oldest version that stays"`
	}
},
) (*one[transit.Key], error) {
	k, err := s.Transit.Trim(ctx, callerOf(ctx), in.Mount, in.ID, in.Body.Oldest)
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

func (s *Server) exportTransit(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Part    string `json:"part" enum:"encryption-key,signing-key,hmac-key,public-key"`
		Version int64  `json:"version,omitempty" doc:"All that may be used if left out"`
	}
},
) (*one[map[int64]string], error) {
	keys, err := s.Transit.Export(ctx, callerOf(ctx), in.Mount, in.ID, in.Body.Part, in.Body.Version)
	out := map[int64]string{}
	for n, k := range keys {
		out[n] = string(k.Reveal())
	}
	return &one[map[int64]string]{out}, s.problem(ctx, err)
}

func (s *Server) importTransit(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Type       transit.Type `json:"type,omitempty" doc:"Of a key that is not there yet"`
		Ciphertext []byte       `json:"ciphertext" doc:"An AES key of 256 bits under RSA-OAEP, then the key under that by AES-KWP (RFC 5649)"`
		Hash       string       `json:"hash_function,omitempty" doc:"Of RSA-OAEP: SHA256 if left out"`
		Exportable bool         `json:"exportable,omitempty"`
		Rotates    bool         `json:"allow_rotation,omitempty"`
		More       bool         `json:"more,omitempty" doc:"It is the next version of a key that is there"`
	}
},
) (*one[transit.Key], error) {
	b := in.Body
	k, err := s.Transit.Import(ctx, callerOf(ctx), in.Mount, in.ID, b.Type, transit.Spec{Exportable: b.Exportable, ImportedRotates: b.Rotates}, b.Ciphertext, b.Hash, b.More)
	return &one[transit.Key]{k}, s.problem(ctx, err)
}

type wrappingKey struct {
	PublicKey string `json:"public_key"`
}

func (s *Server) wrappingKey(ctx context.Context, in *struct{ Mounted }) (*one[wrappingKey], error) {
	k, err := s.Transit.WrappingKey(ctx, callerOf(ctx), in.Mount)
	return &one[wrappingKey]{wrappingKey{k}}, s.problem(ctx, err)
}

// TransitItems is a batch.
type TransitItems struct {
	Named
	Mounted
	Body struct {
		Items []TransitItem `json:"items" minItems:"1" maxItems:"1000" nullable:"false"`
		TransitHow
		MAC bool `json:"mac,omitempty" doc:"Of verify: the texts are MACs"`
	}
}

// TransitItem is one of a batch. Bytes are in base64.
type TransitItem struct {
	Plaintext  []byte `json:"plaintext,omitempty" doc:"To encrypt, or the input to sign, verify or make a MAC of"`
	Ciphertext string `json:"ciphertext,omitempty" doc:"To decrypt or rewrap, or the signature or MAC to verify"`
	Context    []byte `json:"context,omitempty" doc:"Of a derived key"`
	Data       []byte `json:"associated_data,omitempty" doc:"That a ciphertext is bound to"`
	Version    int64  `json:"version,omitempty" minimum:"0" doc:"The newest if left out"`
}

// TransitHow says how to sign, verify or make a MAC.
type TransitHow struct {
	Hash      string `json:"hash,omitempty" doc:"sha2-256 if left out"`
	Prehashed bool   `json:"prehashed,omitempty"`
	Encoding  string `json:"encoding,omitempty" enum:"asn1,jws" doc:"Of ECDSA; asn1 if left out"`
	RSA       string `json:"rsa,omitempty" enum:"pss,pkcs1v15" doc:"pss if left out"`
	Salt      string `json:"salt,omitempty" doc:"Of PSS: auto, hash or a number of bytes"`
}

func (in *TransitItems) how() transit.How {
	h := in.Body.TransitHow
	return transit.How{Hash: h.Hash, Prehashed: h.Prehashed, Encoding: h.Encoding, RSA: h.RSA, Salt: h.Salt}
}

func (t TransitItem) item() transit.Item {
	return transit.Item{Plaintext: t.Plaintext, Ciphertext: t.Ciphertext, Context: t.Context, Data: t.Data, Version: t.Version}
}

func (in *TransitItems) items() []transit.Item {
	out := make([]transit.Item, len(in.Body.Items))
	for i, one := range in.Body.Items {
		out[i] = one.item()
	}
	return out
}

// A transitResult is what came of an item.
type transitResult struct {
	Text      string `json:"text,omitempty" doc:"The ciphertext, signature or MAC"`
	Plaintext []byte `json:"plaintext,omitempty"`
	Valid     *bool  `json:"valid,omitempty"`
	Version   int64  `json:"version,omitempty"`
	PublicKey string `json:"public_key,omitempty"`
	Error     string `json:"error,omitempty" doc:"Why this one was not done, if it was not"`
	Code      string `json:"code,omitempty"`
}

func (s *Server) transitItems(do func(context.Context, *TransitItems) ([]transit.Result, error)) func(context.Context, *TransitItems) (*many[transitResult], error) {
	return func(ctx context.Context, in *TransitItems) (*many[transitResult], error) {
		list, err := do(ctx, in)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		out := make([]transitResult, len(list))
		for i, r := range list {
			if r.Err != nil {
				p := s.problemOf(ctx, r.Err)
				out[i] = transitResult{Error: p.Detail, Code: p.Code}
				continue
			}
			out[i] = transitResult{Text: r.Text, Plaintext: r.Plaintext.Reveal(), Version: r.Version, PublicKey: r.PublicKey}
			if r.Text == "" && r.Plaintext.Reveal() == nil {
				out[i].Valid = &r.Valid
			}
		}
		return pageOf(out, ""), nil
	}
}

func (s *Server) dataKey(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Bits    int    `json:"bits,omitempty" enum:"128,256,512" default:"256"`
		Wrapped bool   `json:"wrapped,omitempty" doc:"Without the plaintext"`
		Context []byte `json:"context,omitempty" doc:"Of a derived key"`
	}
},
) (*one[transitResult], error) {
	r, err := s.Transit.DataKey(ctx, callerOf(ctx), in.Mount, in.ID, in.Body.Bits, !in.Body.Wrapped, transit.Item{Context: in.Body.Context})
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return &one[transitResult]{transitResult{Text: r.Text, Plaintext: r.Plaintext.Reveal(), Version: r.Version}}, nil
}
