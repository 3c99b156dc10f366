package sqlstore

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// connections is how many connections of PostgreSQL a store holds at most,
// unless the URL says pool_max_conns; a choice of ours, not measured: two for each of
// four shard workers, one for each of sixteen job steps, and eight for calls. A
// server's max_connections must hold that many for each replica.
const connections = 32

// How long a server may be silent. One whose machine is gone answers nothing, not
// even that: without these TCP goes on for minutes. The choices are ours, below a
// lease (rotation.Config.LeaseTTL) where leases are renewed on the way.
const (
	// connectTime bounds the connecting to each host, unless the URL says
	// connect_timeout.
	connectTime = 5 * time.Second
	// unackedTime is how long data that was sent may go without TCP's word that it
	// came. Keepalive does not look while such data is on its way.
	unackedTime = 10 * time.Second
	// Keepalive asks a server that is to say something whether it is there: first after
	// keepaliveIdle of silence, then after each keepaliveInterval. keepaliveCount
	// questions without an answer are the end, or one where unackedTime is known to TCP.
	keepaliveIdle     = 15 * time.Second
	keepaliveInterval = 5 * time.Second
	keepaliveCount    = 3
	// beginTime bounds the first words of a transaction, which wait for nobody.
	beginTime = 3 * time.Second
	// answerTime bounds any other statement. Where there is much to look at, a
	// statement looks at a stretch of it (stretchRows).
	answerTime = time.Minute
)

// How long PostgreSQL lets a session be. Every wait ends: a transaction that
// waits for another longer than lockWait is run again, one whose process sleeps
// loses its locks after idleInTransaction, and statementTime is the end of a
// statement for whose answer nobody waits any more (answerTime).
const (
	lockWait          = 5 * time.Second
	idleInTransaction = 10 * time.Second
	statementTime     = 2 * time.Minute
)

func postgresConfig(url string) (*pgxpool.Config, error) {
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		return nil, errors.New("the database's URL must begin with postgres://")
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, withoutURL(err)
	}
	if !strings.Contains(url, "pool_max_conns=") {
		config.MaxConns = connections
	}
	config.MaxConnLifetimeJitter = config.MaxConnLifetime / 10
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTime
	}
	c.DialFunc = (&net.Dialer{
		Timeout: c.ConnectTimeout, // also where pgx dials anew to cancel a statement
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
		},
		Control: func(network, _ string, socket syscall.RawConn) error {
			return boundUnacked(network, socket, unackedTime)
		},
	}).DialContext
	// A transaction's first words are the question whether a connection lives.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	if c.ValidateConnect == nil { // a standby is passed over
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
		defer cancel()
		return keepCommits(ctx, conn)
	}
	for name, value := range map[string]string{
		"application_name":                    "keybroker",
		"lock_timeout":                        milliseconds(lockWait),
		"idle_in_transaction_session_timeout": milliseconds(idleInTransaction),
		"statement_timeout":                   milliseconds(statementTime),
		// The server notices as fast that a replica's machine is gone, and gives its
		// locks back. On a socket of the file system these mean nothing.
		"tcp_keepalives_idle":     seconds(keepaliveIdle),
		"tcp_keepalives_interval": seconds(keepaliveInterval),
		"tcp_keepalives_count":    strconv.Itoa(keepaliveCount),
		"tcp_user_timeout":        milliseconds(unackedTime),
	} {
		if c.RuntimeParams[name] == "" {
			c.RuntimeParams[name] = value
		}
	}
	return config, nil
}

// OnLoopback tells whether every server that a database's URL names is on this
// machine: a unix socket, or a loopback address.
func OnLoopback(url string) (bool, error) {
	config, err := postgresConfig(url)
	if err != nil {
		return false, err
	}
	c := config.ConnConfig
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	return !slices.ContainsFunc(hosts, func(host string) bool {
		ip := net.ParseIP(host)
		return !strings.HasPrefix(host, "/") && host != "localhost" && (ip == nil || !ip.IsLoopback())
	}), nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// credentials are the user and password that were read last.
type credentials struct{ user, password string }

// takeCredentials gives new connections the user and password of now. A URL that
// cannot be read, because somebody is writing it say, leaves those that were read
// last.
func (c Config) takeCredentials() func(context.Context, *pgx.ConnConfig) error {
	var last atomic.Pointer[credentials]
	return func(ctx context.Context, next *pgx.ConnConfig) error {
		url, err := c.DatabaseURL()
		var config *pgxpool.Config
		if err == nil {
			config, err = postgresConfig(url)
		}
		if err == nil {
			last.Store(&credentials{config.ConnConfig.User, config.ConnConfig.Password})
		} else {
			c.logger().WarnContext(ctx, "the database's URL cannot be read again: the user and password that were read last are tried", "error", err)
		}
		if read := last.Load(); read != nil {
			next.User, next.Password = read.user, read.password
		}
		return nil
	}
}

// keepCommits raises what gives up acknowledged writes: off forgets them in a
// crash, local and remote_write in a fail-over. Set for the session, it is beyond
// the reach of later changes of the server's settings, too.
func keepCommits(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `
		select set_config('synchronous_commit',
			case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, false)`)
	if err != nil && c.IsClosed() {
		return &lostConnectionError{err}
	}
	return err
}

// laxSettings names the server's settings that give up acknowledged writes and
// that no session can change: without fsync a crash of the machine may cost any
// commit, without full_page_writes any page that it tore. They are no reason to
// refuse: the storage of some managed servers tears no page.
func laxSettings(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, `
		select name
		from pg_settings
		where name in ('fsync', 'full_page_writes') and setting = 'off'
		order by name`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
