package main

import (
	"context"
	"time"
)

// How often the API asks whether the database answers, and how many silences in a
// row make it unwelcoming: one alone may be a moment's load. The chart's readiness
// probe has the same patience.
const (
	pingEvery = 2 * time.Second
	pingTime  = time.Second
	pingsLost = 3
)

// watchReadiness tells set, when that changes, whether the database that ping asks
// is there, until ctx ends. It is taken to be there at first.
func watchReadiness(ctx context.Context, ping func(context.Context) error, set func(ready bool)) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	lost := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, pingTime)
		err := ping(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if lost >= pingsLost {
				set(true)
			}
			lost = 0
		default:
			if lost++; lost == pingsLost {
				set(false)
			}
		}
	}
}
