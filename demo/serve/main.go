// Serve runs the sample company's customer system, and the collector that
// should never hear from it, until it is interrupted: something to try Estover
// on by hand.
//
//	go run ./demo/serve -dir DIR
//
// DIR gets ca.pem, which whoever calls the sites has to trust, and crm.key,
// the key that the customer system wants.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"estover.dev/demo/collector"
	"estover.dev/demo/company"
	"estover.dev/demo/web"
)

func main() {
	dir := flag.String("dir", ".", "where ca.pem and crm.key are written")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w, err := web.New(dir)
	if err != nil {
		return err
	}
	key := "crm_live_" + strings.ToLower(rand.Text())
	if err := os.WriteFile(filepath.Join(dir, "crm.key"), []byte(key), 0o600); err != nil {
		return err
	}
	c := &collector.Collector{}
	away, err := w.Serve("collector.example.test", "", c)
	if err != nil {
		return err
	}
	defer away.Close()
	crm, err := w.Serve("crm.example.test", "", company.New(key, away.URL+"/import"))
	if err != nil {
		return err
	}
	defer crm.Close()
	fmt.Printf("customer system  %s at %s\ncollector        %s at %s\nauthority        %s\n",
		crm.URL, crm.Address, away.URL, away.Address, w.CAFile)
	<-ctx.Done()
	fmt.Printf("The collector got %d requests.\n", len(c.Arrivals()))
	return nil
}
