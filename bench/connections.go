package main

import (
	"context"
	"fmt"

	"estover.dev/internal/db/scratch"
)

// connections has a crowd ask for tokens: 256 connections do as well as 16,
// and nobody is sent away. No request may hold a connection to the database
// while it waits for another; if one did, the crowd would stand still.
func connections(ctx context.Context, b *Bench) ([]Row, error) {
	pg, err := scratch.Start(scratch.Options{Durable: true})
	if err != nil {
		return nil, err
	}
	defer pg.Stop()
	var rows []Row
	for _, engine := range []struct{ name, url string }{{"sqlite", ""}, {"postgres", pg.URL}} {
		row, err := b.crowd(ctx, engine.url)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", engine.name, err)
		}
		row.Name = "connections-" + engine.name
		rows = append(rows, row)
	}
	return rows, nil
}

func (b *Bench) crowd(ctx context.Context, database string) (Row, error) {
	in, err := b.install(ctx, database)
	if err != nil {
		return Row{}, err
	}
	defer in.stop()
	if err := in.apply(ctx, company(1, "")); err != nil {
		return Row{}, err
	}
	secret, err := in.secret(ctx, "bot-0")
	if err != nil {
		return Row{}, err
	}
	next := always(bySecret(tokenPath, in.addr, secret, forOwn...))
	var ratios, rates []float64
	for round := range b.Rounds + 1 {
		few, err := drive(ctx, in.process, 16, b.For, next)
		if err != nil {
			return Row{}, err
		}
		many, err := drive(ctx, in.process, 256, b.For, next)
		if err != nil {
			return Row{}, err
		}
		if n := few.failed + many.failed; n > 0 {
			return Row{}, fmt.Errorf("%d answers were errors of the server", n)
		}
		if round > 0 {
			ratios, rates = append(ratios, many.rate()/few.rate()), append(rates, many.rate())
		}
	}
	return Row{
		Ratio: median(ratios), Target: 0.9, Better: "higher",
		Against: "16 connections", Value: median(rates), Unit: "tokens/s on 256 connections, none refused",
	}, nil
}
