package brokertest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// PostgresPair is a PostgreSQL server and its synchronous standby, both private,
// both with the settings with which no commit is lost: whoever is told of a
// commit may count on it after a fail-over. They stop by themselves, also when
// the test process is killed. It is for one goroutine.
type PostgresPair struct {
	bin     string
	primary *postgresServer
	standby *postgresServer // nil between FailOver and Rejoin
	spare   *postgresServer // where the next standby is made
}

// StartPostgresPair starts both. It fails with ErrNoPostgres where PostgreSQL is
// not installed. Stop it in any case but that of an error.
func StartPostgresPair(ctx context.Context) (*PostgresPair, error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	primary, err := startOwnPostgres(ctx, bin, true)
	if err != nil {
		return nil, err
	}
	p := &PostgresPair{bin: bin, primary: primary}
	if p.spare, err = newPostgresServer(bin); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	if err := p.Rejoin(ctx); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// URL names both servers, whichever is the primary: clients find it by its
// taking writes (libpq's target_session_attrs).
func (p *PostgresPair) URL() string {
	dirs := []string{p.primary.dir}
	for _, s := range []*postgresServer{p.standby, p.spare} {
		if s != nil {
			dirs = append(dirs, s.dir)
		}
	}
	at := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres",
		RawQuery: "host=" + url.QueryEscape(strings.Join(dirs, ",")) + "&target_session_attrs=read-write"}
	return at.String()
}

// Restart stops the primary as if its machine had failed, and starts it again.
func (p *PostgresPair) Restart(ctx context.Context) error { return p.primary.restart(ctx) }

// FailOver stops the primary as if its machine had failed, and makes the standby
// the primary. It has no standby until Rejoin.
func (p *PostgresPair) FailOver(ctx context.Context) error {
	if p.standby == nil {
		return errors.New("there is no standby: Rejoin first")
	}
	if err := p.inSync(ctx); err != nil {
		return err
	}
	if err := p.primary.run(ctx, p.primary.pgCtl, "stop", "-s", "-m", "immediate", "-D", p.primary.data()); err != nil {
		return err
	}
	p.primary, p.standby, p.spare = p.standby, nil, p.primary
	return p.primary.run(ctx, p.primary.pgCtl, "promote", "-s", "-w", "-D", p.primary.data())
}

// Rejoin makes a new standby from the primary, where the failed one was, and
// returns when each commit waits for it.
func (p *PostgresPair) Rejoin(ctx context.Context) error {
	s := p.spare
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if err := s.run(ctx, filepath.Join(p.bin, "pg_basebackup"), "-D", s.data(), "-h", p.primary.dir, "-U", "postgres",
		"-R", "-X", "stream", "-c", "fast"); err != nil {
		return err
	}
	// The backup has the primary's settings; the last of a name counts. A standby
	// that looks for its primary every 5 s would hold up commits for as long.
	if err := s.configure(fmt.Sprintf("unix_socket_directories = '%s'\nwal_retrieve_retry_interval = '100ms'\nsynchronous_standby_names = ''\n", s.dir)); err != nil {
		return err
	}
	if err := s.run(ctx, s.pgCtl, "start", "-s", "-w", "-D", s.data(), "-l", s.log()); err != nil {
		return err
	}
	p.standby, p.spare = s, nil
	if err := p.primary.configure("synchronous_standby_names = '*'\n"); err != nil {
		return err
	}
	if err := p.primary.run(ctx, p.primary.pgCtl, "reload", "-s", "-D", p.primary.data()); err != nil {
		return err
	}
	return p.inSync(ctx)
}

// syncBound is far above what a standby takes to catch up with a test.
const syncBound = time.Minute

// inSync waits until the standby has all that was ever acknowledged: a commit
// that a restart of the primary has shown to its readers, and that the standby
// was not yet told of, would else be taken back by a fail-over.
func (p *PostgresPair) inSync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncBound)
	defer cancel()
	const query = `do $$ begin
		for i in 1..6000 loop
			perform pg_stat_clear_snapshot();
			if exists (select from pg_stat_replication where sync_state = 'sync' and flush_lsn >= pg_current_wal_flush_lsn()) then return; end if;
			perform pg_sleep(0.01);
		end loop;
		raise 'no standby is in sync';
	end $$`
	return p.primary.sql(ctx, query)
}

// TerminateBackends ends the sessions of all clients.
func (p *PostgresPair) TerminateBackends(ctx context.Context) error {
	return p.primary.sql(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`)
}

// Stop ends both and removes everything of them.
func (p *PostgresPair) Stop() error {
	var errs []error
	for _, s := range []*postgresServer{p.standby, p.spare, p.primary} {
		if s != nil {
			errs = append(errs, s.stop())
		}
	}
	return errors.Join(errs...)
}
