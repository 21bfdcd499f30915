package api

import (
	"context"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/lease"
)

// identified is what a value is that was found somewhere.
type identified struct {
	Secrets []secret.Sighting `json:"secrets" nullable:"false" doc:"The versions of secrets that have had it"`
	Leases  []lease.Sighting  `json:"leases" nullable:"false" doc:"The leases that handed it out, whether or not they have ended"`
}

func (s *Server) identify(ctx context.Context, in *struct {
	Body struct {
		Value string `json:"value" minLength:"1" maxLength:"1048576" doc:"The value that was found. It is compared and not kept"`
	}
},
) (*one[identified], error) {
	value := estover.NewSecret([]byte(in.Body.Value))
	defer value.Wipe()
	var out identified
	var err error
	if out.Secrets, err = s.Secrets.Identify(ctx, callerOf(ctx), value); err != nil {
		return nil, s.problem(ctx, err)
	}
	out.Leases, err = s.Leases.Identify(ctx, callerOf(ctx), value)
	return &one[identified]{out}, s.problem(ctx, err)
}
