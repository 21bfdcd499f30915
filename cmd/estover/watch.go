package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/approval"
)

// accessWatch shows what waits for a decision as it comes and goes.
func accessWatch(s *settings) *cobra.Command {
	var every, length time.Duration
	c := &cobra.Command{
		Use: "watch", Short: "Show what waits for a decision, as it comes and goes", Args: noArguments,
		Long: `Shows the requests that wait for a decision, and each further one as it comes. What
has been decided is told too. With --output json each line is an object.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if length > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, length)
				defer cancel()
			}
			w := &watch{c: c, out: cmd.OutOrStdout(), json: s.output == "json", waits: map[string]bool{}}
			tick := time.NewTicker(max(every, time.Second/5))
			defer tick.Stop()
			for {
				if err := w.look(ctx); err != nil && ctx.Err() == nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
		},
	}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "how often to look")
	c.Flags().DurationVar(&length, "for", 0, "stop after this time (default: when interrupted)")
	return c
}

// A watch is what has been shown.
type watch struct {
	c     *client
	out   io.Writer
	json  bool
	waits map[string]bool
}

// look shows what has changed since the last time.
func (w *watch) look(ctx context.Context) error {
	all, err := list[approval.Request](ctx, w.c, "/v1/access/requests", url.Values{"state": {string(approval.Pending)}, "limit": {"200"}}, 1000)
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b approval.Request) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	now := map[string]bool{}
	for _, r := range all {
		now[r.ID] = true
		if !w.waits[r.ID] {
			if err := w.tell(r); err != nil {
				return err
			}
		}
	}
	for id := range w.waits {
		if now[id] {
			continue
		}
		var r approval.Request
		if err := w.c.do(ctx, http.MethodGet, "/v1/access/requests/"+url.PathEscape(id), nil, &r); err != nil {
			return err
		}
		if err := w.tell(r); err != nil {
			return err
		}
	}
	w.waits = now
	return nil
}

// tell shows one request, in one line.
func (w *watch) tell(r approval.Request) error {
	if w.json {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out, "%s\n", b)
		return err
	}
	at, what := r.CreatedAt, []string{string(r.Kind), r.Target}
	for _, item := range r.Offer.Items {
		what = append(what, item.Resource+": "+strings.Join(item.Actions, ", "))
	}
	line := []string{"", string(r.State), r.ID, cmp.Or(r.Agent, string(r.Requester)), strings.Join(slices.DeleteFunc(what, func(s string) bool { return s == "" }), " ")}
	if r.State == approval.Pending {
		line = append(line, r.Reason, w.c.addr+"/approve/"+r.ID)
	} else {
		at = r.DecidedAt
		line = append(line, string(r.DecidedBy), r.Note)
	}
	if !at.IsZero() {
		line[0] = at.Local().Format(time.TimeOnly)
	}
	_, err := fmt.Fprintln(w.out, printable(strings.Join(slices.DeleteFunc(line, func(s string) bool { return s == "" }), "  ")))
	return err
}
