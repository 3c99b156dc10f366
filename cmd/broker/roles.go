package main

import (
	"errors"
	"fmt"
	"strings"
)

// roles are what a process does: it answers calls, it works on jobs and sweeps,
// or both. A worker that does not answer serves health and metrics only.
type roles struct{ api, worker bool }

// The names of the roles.
const (
	roleAPI    = "api"
	roleWorker = "worker"
	bothRoles  = roleAPI + "," + roleWorker
)

// parseRoles reads a list of role names.
func parseRoles(names []string) (r roles, err error) {
	for _, name := range names {
		switch strings.TrimSpace(name) {
		case roleAPI:
			r.api = true
		case roleWorker:
			r.worker = true
		default:
			return roles{}, fmt.Errorf("roles: %q is none: api, worker, or both", name)
		}
	}
	if r == (roles{}) {
		return roles{}, errors.New("roles: must name api, worker, or both")
	}
	return r, nil
}

// check refuses roles that leave something to nobody.
func (r roles) check(d database, admin string) error {
	switch {
	case r.api && r.worker:
		return nil
	case !d.shared():
		return errors.New("roles: an SQLite file has one process, which needs both roles")
	case !r.api && admin == adminOff:
		return errors.New("admin: must not be off for a worker that serves no API: nobody could ask how it is")
	}
	return nil
}
