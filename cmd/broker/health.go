package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// healthTimeout is below the timeoutSeconds of the chart's probes.
const healthTimeout = 3 * time.Second

// health is broker health: the exec probe of a container that has no shell and
// whose listeners are on loopback.
func (c command) health(ctx context.Context) error {
	set := c.flags("health")
	path := set.String("config", "", "the configuration `file` of the server to ask, for its admin address")
	address := set.String("admin", defaultAdmin, "the loopback `address` of the server's admin listener")
	live := set.Bool("live", false, "ask only whether the process answers, not whether it reaches its database")
	if err := c.parse(set); err != nil {
		return err
	}
	if *path != "" {
		if given(set)["admin"] {
			return usagef("--config and --admin exclude each other: the file names the address")
		}
		config, err := readConfig(*path)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		*address = config.Admin
	}
	if *address == adminOff {
		return usagef("admin: is off, so there is nobody to ask")
	}
	if err := checkAddress("--admin", *address, false); err != nil {
		return usageError{err.Error()}
	}
	probe := readyPath
	if *live {
		probe = livePath
	}
	answer, err := ask(ctx, "http://"+*address+probe)
	if err != nil {
		return err
	}
	_, err = io.WriteString(c.stdout, answer)
	return err
}

// ask gets a short text. An answer other than 200 is an error that quotes it.
func ask(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// The environment's proxies are not for loopback.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	return string(text), nil
}
