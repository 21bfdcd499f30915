package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/server"
)

func serveCommand() *cobra.Command {
	var config server.Config
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: token service, vault, gateway, API and log in one process",
		Long: `Serve runs everything that Estover is, in one process over one database.

The first start makes a data directory, a root key beside it, a certificate
authority for the server's own address, and DATA/bootstrap-token: a token by
which one person becomes the first administrator with 'estover login'. Keep the
root key apart from the data, and keep a copy: without it the data is lost.

In an emergency, a file DATA/contain or the signal USR1 contains all agents.

Every flag can be given in the environment.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := loggerFor(config)
			if err != nil {
				return err
			}
			if config.Pprof == "" {
				runtime.MemProfileRate = 0 // nobody can ask who made which objects, and to note it was 1 % of the work
			}
			emergency := killSwitch()
			s, err := server.Open(cmd.Context(), config, logger, version)
			if err != nil {
				return err
			}
			go tuneMemory(cmd.Context())
			go func() {
				for range emergency {
					s.Everything(cmd.Context(), "A signal to the server says so.")
				}
			}()
			return s.Run(cmd.Context())
		},
	}
	bind(c, &config)
	return c
}

// tuneMemory gives back what the start took, above all the compiling of
// policies, and has the collector run less often from then on: what a server
// keeps is small beside what its requests use and leave, and at Go's usual
// pace a tenth of its time would go into looking at the same things again.
// Where it keeps much, for many agents at work, that pace is good enough, and
// four times as much left lying would be felt. An operator who sets GOGC knows
// better.
func tuneMemory(ctx context.Context) {
	const leftLying = 96 << 20 // bytes, between two collections
	leaveStart := func() {
		debug.FreeOSMemory()
		leaveCode()
	}
	leaveStart()
	go func() { // and what listeners and jobs have needed to begin
		select {
		case <-time.After(5 * time.Second):
			leaveStart()
		case <-ctx.Done():
		}
	}()
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for last := uint64(0); ; {
		metrics.Read(live)
		if percent := 100 * leftLying / max(live[0].Value.Uint64(), 1); min(max(percent, 100), 400) != last {
			last = min(max(percent, 100), 400)
			debug.SetGCPercent(int(last))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// noArguments refuses what the command does not take.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), strings.Join(args, " "))}
	}
	return nil
}

// bind makes each field of a configuration a flag whose default comes from the
// environment, as the field's tags say.
func bind(c *cobra.Command, config *server.Config) {
	v := reflect.ValueOf(config).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		value, help := tag.Get("default"), tag.Get("help")+" ("+tag.Get("env")+")"
		if env := os.Getenv(tag.Get("env")); env != "" {
			value = env
		}
		switch field := v.Field(i).Addr().Interface().(type) {
		case *string:
			c.Flags().StringVar(field, tag.Get("flag"), value, help)
		case *bool:
			on, _ := strconv.ParseBool(value)
			c.Flags().BoolVar(field, tag.Get("flag"), on, help)
		case *[]string:
			var values []string
			if value != "" {
				values = strings.Split(value, ",")
			}
			c.Flags().StringSliceVar(field, tag.Get("flag"), values, help)
		default:
			panic("estover: a configuration field of a type that is no flag: " + v.Type().Field(i).Name)
		}
	}
}

// loggerFor writes the server's log to standard error.
func loggerFor(config server.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(config.LogLevel)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level is debug, info, warn or error, not %q", config.LogLevel)}
	}
	o := &slog.HandlerOptions{Level: level}
	if config.LogJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
}
