package sqlstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/sqlstore"
)

// TestPrivateCA: with sslmode=verify-full a server whose certificate is of a
// private CA is refused, and taken where the URL's sslrootcert names that CA. The
// server here has TLS and no database behind it.
func TestPrivateCA(t *testing.T) {
	certificate, ca := privateCertificate(t)
	for _, test := range []struct {
		name, parameter string
		trusted         bool
	}{
		{"without its CA", "", false},
		{"with its CA", "&sslrootcert=" + ca, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, handshakes := tlsOnly(t, certificate)
			url := "postgres://keybroker:secret@" + address + "/keybroker?sslmode=verify-full" + test.parameter
			_, err := sqlstore.OpenPostgres(t.Context(), url, sqlstore.Config{})
			if err == nil {
				t.Fatal("opened a database that is not there")
			}
			if unknown := strings.Contains(err.Error(), "unknown authority"); unknown == test.trusted {
				t.Errorf("the store: %v", err)
			}
			if err := <-handshakes; (err == nil) != test.trusted {
				t.Errorf("the server: %v", err)
			}
			if _, _, err = sqlstore.MigratePostgres(t.Context(), url); err == nil || strings.Contains(err.Error(), "unknown authority") == test.trusted {
				t.Errorf("the migration: %v", err)
			}
		})
	}
}

// privateCertificate makes a certificate for 127.0.0.1 that is its own CA, and a
// file with it.
func privateCertificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// tlsOnly answers PostgreSQL's SSLRequest, shakes hands, and hangs up. It gives
// the outcome of the first handshake.
func tlsOnly(t *testing.T, certificate tls.Certificate) (address string, outcome <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	first := make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			request := make([]byte, 8) // length and code (PostgreSQL, Message Formats, SSLRequest)
			if _, err = io.ReadFull(conn, request); err == nil {
				_, err = conn.Write([]byte("S"))
			}
			if err == nil {
				err = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}).Handshake()
			}
			select {
			case first <- err:
			default:
			}
			_ = conn.Close()
		}
	}()
	return l.Addr().String(), first
}
