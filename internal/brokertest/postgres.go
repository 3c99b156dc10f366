package brokertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// PostgresURL names the variable that gives a PostgreSQL server to use in place
// of one that the tests start: a URL of a role that may create databases. psql
// must be installed beside it.
const PostgresURL = "KEYBROKER_TEST_POSTGRES_URL"

// ErrNoPostgres says that no PostgreSQL is installed here.
var ErrNoPostgres = errors.New("PostgreSQL is not installed: its initdb, pg_ctl and psql are looked for on PATH and in /usr/lib/postgresql/*/bin (Debian: apt-get install postgresql-15), or set " + PostgresURL)

// Postgres is a PostgreSQL server for the tests of one process: private, in a
// temporary directory, reached by a socket in it. It is started by the first use
// and stops by itself, also when the test process is killed. It is safe for
// concurrent use.
//
// Its settings are PostgreSQL's own, but for durability: without Durable, fsync
// and full_page_writes are off, so that a power cut would cost the data, and
// nothing else would; a process that is killed, the server's too, costs none.
// Tests that kill the server take Durable all the same: they show the settings
// that count. Text sorts by the rules of English where the server can do that
// (15 and newer), so that a column that forgot its collation shows.
type Postgres struct {
	// Durable keeps the settings with which no commit is lost. Set it before the
	// first use.
	Durable bool

	mu       sync.Mutex
	server   *postgresServer
	err      error // of the start, for good
	numbered int
}

// postgresServer is one that runs: our own, or the one at PostgresURL.
type postgresServer struct {
	url  *url.URL
	psql string

	// The rest is of our own server only.
	dir      string
	pgCtl    string
	owner    *syscall.Credential // nil: whoever runs the tests
	watchdog *exec.Cmd
	alive    io.Closer // while it is open, the watchdog waits
}

// Need starts the server. Where PostgreSQL is missing the test is skipped,
// loudly, and under CI=true it fails.
func (p *Postgres) Need(t testing.TB) {
	t.Helper()
	_, _, err := p.started(t.Context())
	if errors.Is(err, ErrNoPostgres) && os.Getenv("CI") != "true" {
		t.Skipf("!!! NOT TESTED ON POSTGRESQL: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Database gives the URL of a new, empty database of a server that is needed. It
// is dropped at the end of the test.
func (p *Postgres) Database(t testing.TB) string {
	t.Helper()
	p.Need(t)
	at, drop, err := p.Create(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return at
}

// Create is Database for whoever has no test: drop it when done.
func (p *Postgres) Create(ctx context.Context) (at string, drop func() error, err error) {
	s, n, err := p.started(ctx)
	if err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("keybroker_test_%d_%d", os.Getpid(), n)
	if err := s.sql(ctx, "create database "+name); err != nil {
		return "", nil, err
	}
	database := *s.url
	database.Path = "/" + name
	return database.String(), func() error {
		return s.sql(context.WithoutCancel(ctx), "drop database "+name+" with (force)")
	}, nil
}

// Restart stops the server as if its machine had failed (pg_ctl restart -m
// immediate): sessions are cut off wherever they are, and the server recovers
// from its log. It returns when the server takes connections again.
func (p *Postgres) Restart(t testing.TB) {
	t.Helper()
	s, _, err := p.started(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.dir == "" {
		t.Skipf("!!! NOT TESTED: the server at %s is not ours to restart", PostgresURL)
	}
	if err := s.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// PasswordRole makes a role that may do everything once it has given its password,
// and gives its name.
func (p *Postgres) PasswordRole(t testing.TB, password string) string {
	t.Helper()
	s, n, err := p.started(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.dir == "" {
		t.Skipf("!!! NOT TESTED: the server at %s is not ours to configure", PostgresURL)
	}
	role := fmt.Sprintf("role_%d", n)
	if err := s.passwordRole(t.Context(), role, password); err != nil {
		t.Fatal(err)
	}
	return role
}

// passwordRole returns when the server asks for the password: it takes new rules
// some time after it was told to.
func (s *postgresServer) passwordRole(ctx context.Context, role, password string) error {
	if err := s.sql(ctx, "create role "+role+" superuser login password '"+password+"'"); err != nil {
		return err
	}
	path := filepath.Join(s.data(), "pg_hba.conf")
	rules, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append([]byte("local all "+role+" scram-sha-256\n"), rules...), 0o600); err != nil {
		return err
	}
	if err := s.run(ctx, s.pgCtl, "reload", "-s", "-D", s.data()); err != nil {
		return err
	}
	stranger := *s
	at := *s.url
	at.User = url.UserPassword(role, "not "+password)
	stranger.url = &at
	for stranger.sql(ctx, "select 1") == nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (s *postgresServer) restart(ctx context.Context) error {
	return s.run(ctx, s.pgCtl, "restart", "-s", "-w", "-m", "immediate", "-D", s.data(), "-l", s.log())
}

// Stop ends the server, if it was started, and removes everything of it.
func (p *Postgres) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.server
	p.server, p.err = nil, errors.New("the tests' PostgreSQL was stopped")
	if s == nil || s.dir == "" {
		return nil
	}
	return s.stop()
}

// stop has the watchdog end the server and remove everything of it.
func (s *postgresServer) stop() error { return errors.Join(s.alive.Close(), s.watchdog.Wait()) }

// started starts the server once, and gives a number that nobody else got.
func (p *Postgres) started(ctx context.Context) (*postgresServer, int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil && p.err == nil {
		p.server, p.err = startPostgres(context.WithoutCancel(ctx), p.Durable)
	}
	p.numbered++
	return p.server, p.numbered, p.err
}

func startPostgres(ctx context.Context, durable bool) (*postgresServer, error) {
	if given := os.Getenv(PostgresURL); given != "" {
		return givenPostgres(given)
	}
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	return startOwnPostgres(ctx, bin, durable)
}

// startOwnPostgres starts a server of our own by the programs in bin.
func startOwnPostgres(ctx context.Context, bin string, durable bool) (*postgresServer, error) {
	s, err := newPostgresServer(bin)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, filepath.Join(bin, "initdb"), durable); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// newPostgresServer makes the place of a server, and what removes it again.
func newPostgresServer(bin string) (*postgresServer, error) {
	s := &postgresServer{psql: filepath.Join(bin, "psql"), pgCtl: filepath.Join(bin, "pg_ctl")}
	var err error
	if s.owner, err = unprivileged(); err != nil {
		return nil, err
	}
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	if err := s.startWatchdog(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	s.url = &url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: "host=" + url.QueryEscape(s.dir)}
	return s, nil
}

func givenPostgres(given string) (*postgresServer, error) {
	at, err := url.Parse(given)
	if err != nil || at.Scheme == "" {
		return nil, errors.New(PostgresURL + " must be a URL: postgres://user@host/database")
	}
	psql, err := exec.LookPath("psql")
	if err != nil {
		return nil, fmt.Errorf("%s is set, and psql, which makes the databases, is not installed: %w", PostgresURL, ErrNoPostgres)
	}
	return &postgresServer{url: at, psql: psql}, nil
}

// findPostgres gives the folder of the server's programs, the newest.
func findPostgres() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if onPath, err := exec.LookPath("initdb"); err == nil {
		found = append(found, onPath)
	}
	if len(found) == 0 {
		return "", ErrNoPostgres
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return majorVersion(a) - majorVersion(b) })
	return filepath.Dir(newest), nil
}

// majorVersion asks an initdb, which answers "initdb (PostgreSQL) 15.18 …".
func majorVersion(initdb string) int {
	out, err := exec.Command(initdb, "--version").Output()
	if err != nil {
		return 0
	}
	words := strings.Fields(string(out))
	if len(words) < 3 {
		return 0
	}
	major, _, _ := strings.Cut(words[2], ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0
	}
	return n
}

// unprivileged is who runs the server where root runs the tests: PostgreSQL
// refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// maxSocketDir keeps the socket's path below the system's limit of 107 bytes.
const maxSocketDir = 80

func (s *postgresServer) makeDir() error {
	parent := os.TempDir()
	if len(parent) > maxSocketDir {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "keybroker-pg")
	if err != nil {
		return err
	}
	s.dir = dir
	if s.owner == nil {
		return nil
	}
	return os.Chown(dir, int(s.owner.Uid), int(s.owner.Gid))
}

func (s *postgresServer) data() string { return filepath.Join(s.dir, "data") }
func (s *postgresServer) log() string  { return filepath.Join(s.dir, "log") }

// startWatchdog starts a shell that waits until its input ends, which it does
// when this process closes it or is no more; then it stops the server and
// removes its directory.
func (s *postgresServer) startWatchdog() error {
	const script = `read -r _; "$1" stop -s -m immediate -D "$2/data"; rm -rf -- "$2"`
	s.watchdog = s.command(context.Background(), "/bin/sh", "-c", script, "sh", s.pgCtl, s.dir)
	s.watchdog.SysProcAttr.Setpgid = true // an interrupt from the keyboard is not for it
	alive, err := s.watchdog.StdinPipe()
	if err != nil {
		return err
	}
	s.alive = alive
	return s.watchdog.Start()
}

func (s *postgresServer) start(ctx context.Context, initdb string, durable bool) error {
	args := []string{"-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"}
	if majorVersion(initdb) >= 15 {
		args = append(args, "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
	} else {
		args = append(args, "--locale=C")
	}
	if err := s.run(ctx, initdb, args...); err != nil {
		return err
	}
	settings := fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nmax_connections = 200\n", s.dir)
	if !durable {
		settings += "fsync = off\nfull_page_writes = off\n"
	}
	if err := s.configure(settings); err != nil {
		return err
	}
	if err := s.run(ctx, s.pgCtl, "start", "-s", "-w", "-D", s.data(), "-l", s.log()); err != nil {
		log, _ := os.ReadFile(s.log()) // the reason, if there is one
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(log))
	}
	return nil
}

// configure adds settings; the last of a name counts.
func (s *postgresServer) configure(settings string) error {
	conf, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(settings)
	return errors.Join(err, conf.Close())
}

// sql runs statements as the server's superuser, each by itself. The password
// of a server that is not ours goes through the environment, where ps does not
// show it.
func (s *postgresServer) sql(ctx context.Context, statement string) error {
	at := *s.url
	password, _ := at.User.Password()
	at.User = url.User(at.User.Username())
	cmd := exec.CommandContext(ctx, s.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", at.String(), "-c", statement)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", statement, err, bytes.TrimSpace(out))
	}
	return nil
}

// run runs one of the server's programs to its end. What they leave running must
// hold no pipe of ours, so their words go to a file.
func (s *postgresServer) run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	said, err := os.CreateTemp(s.dir, "said")
	if err != nil {
		return err
	}
	defer os.Remove(said.Name())
	defer said.Close()
	cmd := s.command(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name()) // the reason, if there is one
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), args[0], err, bytes.TrimSpace(text))
	}
	return nil
}

// command is a call as the server's owner, in a directory that he may enter.
func (s *postgresServer) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	return cmd
}
