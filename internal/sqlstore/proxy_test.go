package sqlstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// cut says where a proxy cuts a connection off, once.
type cut int32

const (
	nowhere      cut = iota
	beforeCommit     // the commit does not reach the server
	afterCommit      // the server has committed, and its answer does not come back
	inSetup          // a new connection's first words do not reach the server
	inBegin          // a transaction's first words are late
)

// proxy stands between a store and the server, and loses what it is told to.
type proxy struct {
	net.Listener
	ctx    context.Context // of the test
	socket string          // the server's
	next   atomic.Int32
	late   chan struct{} // told of each inBegin, which goes on when it is asked
	onward chan struct{}
	// silences counts the silences; a connection from before one hears nothing and
	// is not heard, as if the server's machine were gone.
	silences atomic.Int32
	unheard  chan struct{} // told of each begin in a silence
	conns    sync.WaitGroup
}

// silence does to all present connections what the loss of a machine does. New
// ones find a server.
func (p *proxy) silence() { p.silences.Add(1) }

// newProxy gives a proxy in front of a database, and the URL through it.
func newProxy(t *testing.T, at string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, ctx: t.Context(), late: make(chan struct{}), onward: make(chan struct{}), unheard: make(chan struct{}, 100),
		socket: filepath.Join(u.Query().Get("host"), ".s.PGSQL.5432")}
	p.conns.Go(p.serve)
	t.Cleanup(func() {
		l.Close()
		p.conns.Wait()
	})
	u.Host, u.RawQuery = l.Addr().String(), "sslmode=disable"
	return p, u.String()
}

func (p *proxy) serve() {
	for {
		client, err := p.Accept()
		if err != nil {
			return
		}
		p.conns.Go(func() { p.relay(client) })
	}
}

// relay passes messages on as PostgreSQL's protocol frames them (PostgreSQL
// documentation, Message Formats): the first has a length and a body, each later
// one a type before that.
func (p *proxy) relay(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", p.socket)
	if err != nil {
		return
	}
	defer server.Close()
	defer context.AfterFunc(p.ctx, func() { client.Close(); server.Close() })()
	born := p.silences.Load()
	silent := func() bool { return p.silences.Load() != born }
	var deaf atomic.Bool
	answered := make(chan struct{})
	p.conns.Go(func() {
		defer client.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			if deaf.Load() {
				close(answered)
				return
			}
			if silent() {
				<-p.ctx.Done()
			}
			if err != nil {
				return
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	})
	for typed := false; ; typed = true {
		message, err := readMessage(client, typed)
		if err != nil {
			return
		}
		mode := nowhere
		begins := bytes.Contains(message, []byte("begin isolation level"))
		if silent() {
			if begins {
				p.unheard <- struct{}{}
			}
			continue
		}
		if bytes.Contains(message, []byte("set_config('synchronous_commit'")) && p.next.CompareAndSwap(int32(inSetup), int32(nowhere)) {
			return
		}
		if begins && p.next.CompareAndSwap(int32(inBegin), int32(nowhere)) {
			p.late <- struct{}{}
			<-p.onward
		}
		if string(message[1:]) == "\x00\x00\x00\x0bcommit\x00" && cut(p.next.Load()) != inSetup {
			mode = cut(p.next.Swap(int32(nowhere)))
		}
		if mode == beforeCommit {
			return
		}
		deaf.Store(mode == afterCommit)
		if _, err := server.Write(message); err != nil {
			return
		}
		if mode == afterCommit {
			<-answered
			return
		}
	}
}

// readMessage gives a message as it came, with its type and length.
func readMessage(r io.Reader, typed bool) ([]byte, error) {
	head := make([]byte, 4)
	if typed {
		head = make([]byte, 5)
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
	_, err := io.ReadFull(r, body)
	return append(head, body...), err
}
