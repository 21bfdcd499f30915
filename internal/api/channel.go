package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev/internal/notify"
)

func (s *Server) channels() {
	const tag = "Channels"
	huma.Register(s.huma, op("list-channels", http.MethodGet, "/v1/channels", tag, "List the channels by which people are told that something waits"), s.listChannels)
	huma.Register(s.huma, op("put-channel", http.MethodPut, "/v1/channels/{id}", tag, "Add a channel, or change the one of this name"), s.putChannel)
	huma.Register(s.huma, op("show-channel", http.MethodGet, "/v1/channels/{id}", tag, "Show a channel, by name, and whether it gets through"), s.showChannel)
	huma.Register(s.huma, op("test-channel", http.MethodPost, "/v1/channels/{id}/test", tag, "Send a message that asks for nothing, and say what came of it"), s.testChannel)
	huma.Register(s.huma, op("retire-channel", http.MethodDelete, "/v1/channels/{id}", tag, "End a channel; what it had still to say is dropped"), s.retireChannel)
}

func (s *Server) listChannels(ctx context.Context, _ *struct{}) (*many[notify.Channel], error) {
	list, err := s.Notify.List(ctx, callerOf(ctx))
	return pageOf(list, ""), s.problem(ctx, err)
}

func (s *Server) putChannel(ctx context.Context, in *struct {
	Named
	Body notify.Spec
},
) (*one[notify.Channel], error) {
	if in.Body.Name != in.ID {
		return nil, s.problem(ctx, notify.ErrInvalid.With("The path says %q and the body %q; a channel is named once and for good.", in.ID, in.Body.Name).At("name"))
	}
	c, err := s.Notify.Put(ctx, callerOf(ctx), in.Body, "")
	return &one[notify.Channel]{c}, s.problem(ctx, err)
}

func (s *Server) showChannel(ctx context.Context, in *Named) (*one[notify.Channel], error) {
	c, err := s.Notify.ByName(ctx, callerOf(ctx), in.ID)
	return &one[notify.Channel]{c}, s.problem(ctx, err)
}

func (s *Server) testChannel(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Notify.Test(ctx, callerOf(ctx), in.ID))
}

func (s *Server) retireChannel(ctx context.Context, in *Named) (*struct{}, error) {
	return nil, s.problem(ctx, s.Notify.Retire(ctx, callerOf(ctx), in.ID))
}
