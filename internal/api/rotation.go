package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/secret/rotation"
)

func (s *Server) rotations() {
	const tag = "Secrets"
	huma.Register(s.huma, op("list-rotations", http.MethodGet, "/v1/rotations", tag, "List secrets whose versions are made here, and how far each is"), s.listRotations)
	huma.Register(s.huma, op("get-rotation", http.MethodGet, "/v1/rotation", tag, "Show the rotation of a secret"), s.getRotation)
	huma.Register(s.huma, op("put-rotation", http.MethodPut, "/v1/rotation", tag, "Have a secret rotated at a target, or change how"), s.putRotation)
	huma.Register(s.huma, op("remove-rotation", http.MethodDelete, "/v1/rotation", tag, "End the rotation of a secret; its current version stays"), s.removeRotation)
	huma.Register(s.huma, op("run-rotation", http.MethodPost, "/v1/rotation/run", tag, "Rotate a secret now; the answer comes when the new version is the current one"), s.runRotation)
	huma.Register(s.huma, op("explain-rotation", http.MethodGet, "/v1/rotation/explain", tag, "Say what a rotation waits for: who uses the old version, how and since when"), s.explainRotation)
	huma.Register(s.huma, op("force-rotation", http.MethodPost, "/v1/rotation/force", tag, "End the old version although it is in use; the answer says who has lost access"), s.forceRotation)
	huma.Register(s.huma, op("rotate-secret-engine-root", http.MethodPost, "/v1/secret-engines/{name}/rotate-root", tag, "Make a second admin at a target and have the password of the first, which somebody has typed in, die; from then on the pair is rotated"), s.rotateRoot)
	huma.Register(s.huma, op("clear-rotations", http.MethodPost, "/v1/rotation-targets/{id}/clear", tag, "Let rotations begin again at a target, by name or id, where a new password did not log in"), s.clearRotations)
}

func (s *Server) listRotations(ctx context.Context, in *struct {
	Paging
	Prefix string `query:"prefix" doc:"Only secrets whose path begins with this"`
},
) (*many[rotation.Rotation], error) {
	list, err := s.Rotations.List(ctx, callerOf(ctx), in.Prefix, in.Cursor, in.Limit)
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Path
	}
	return pageOf(list, next), s.problem(ctx, err)
}

func (s *Server) getRotation(ctx context.Context, in *SecretPath) (*one[rotation.Rotation], error) {
	r, err := s.Rotations.Get(ctx, callerOf(ctx), in.Path)
	return &one[rotation.Rotation]{r}, s.problem(ctx, err)
}

func (s *Server) putRotation(ctx context.Context, in *struct {
	SecretPath
	Body rotation.Spec
},
) (*one[rotation.Rotation], error) {
	r, err := s.Rotations.Put(ctx, callerOf(ctx), in.Path, in.Body)
	return &one[rotation.Rotation]{r}, s.problem(ctx, err)
}

func (s *Server) removeRotation(ctx context.Context, in *SecretPath) (*struct{}, error) {
	return nil, s.problem(ctx, s.Rotations.Remove(ctx, callerOf(ctx), in.Path))
}

func (s *Server) runRotation(ctx context.Context, in *SecretPath) (*one[rotation.Rotation], error) {
	r, err := s.Rotations.Run(ctx, callerOf(ctx), in.Path)
	return &one[rotation.Rotation]{r}, s.problem(ctx, err)
}

func (s *Server) explainRotation(ctx context.Context, in *SecretPath) (*one[rotation.Explanation], error) {
	e, err := s.Rotations.Explain(ctx, callerOf(ctx), in.Path)
	return &one[rotation.Explanation]{e}, s.problem(ctx, err)
}

func (s *Server) forceRotation(ctx context.Context, in *struct {
	SecretPath
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"Why it cannot wait"`
	}
},
) (*one[rotation.Rotation], error) {
	r, err := s.Rotations.Force(ctx, callerOf(ctx), in.Path, in.Body.Reason)
	return &one[rotation.Rotation]{r}, s.problem(ctx, err)
}

func (s *Server) rotateRoot(ctx context.Context, in *struct {
	LeasePath
	Body struct {
		Second string `json:"second,omitempty" maxLength:"255" doc:"The name of the second admin, who may be there already; the first one's with _b if left out, who may not"`
	}
},
) (*one[rotation.Rotation], error) {
	r, err := s.Rotations.RotateRoot(ctx, callerOf(ctx), in.Name, in.Body.Second)
	return &one[rotation.Rotation]{r}, s.problem(ctx, err)
}

func (s *Server) clearRotations(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Rotations.Clear(ctx, callerOf(ctx), in.ID))
}
