//go:build unix

package chaos_test

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/grpcapi"
	"github.com/keybroker/keybroker/internal/localkms"
	"github.com/keybroker/keybroker/internal/pacer"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/internal/sqlstore"
	"github.com/keybroker/keybroker/test/chaos/devserver"
)

// The test binary is also what is struck: with memberVariable in its environment
// it is one process of a system, the KMS or a replica of the broker, wired as
// `broker serve` wires one, with the windows of --dev.
const memberVariable = "KEYBROKER_CHAOS_MEMBER"

var servingLine = regexp.MustCompile(`^serving on (\S+)$`)

// runMember is the main program of a member.
func runMember(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	set := flag.NewFlagSet("member", flag.ContinueOnError)
	data := set.String("data", "", "the KMS's `directory`")
	database := set.String("database-url-file", "", "a replica's database")
	kmsURL := set.String("kms", "", "a replica's KMS")
	owner := set.String("owner", "", "a replica's name in leases")
	shift := set.Duration("clock-shift", 0, "how far a replica's clock is off")
	if err := set.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if *data != "" {
		return serveKMS(ctx, l, *data)
	}
	url, err := os.ReadFile(*database)
	if err != nil {
		return err
	}
	return serveReplica(ctx, l, replica{database: strings.TrimSpace(string(url)), kms: *kmsURL, owner: *owner,
		clock: func() time.Time { return time.Now().Add(*shift) }})
}

// The principals of --dev.
func memberPrincipals() []localkms.Principal {
	return []localkms.Principal{
		{ARN: customerARN, AccessKeyID: "AKIACUSTOMER00000000", SecretAccessKey: "customer"},
		{ARN: serviceARN, AccessKeyID: "AKIASERVICE000000000", SecretAccessKey: "service"},
		{ARN: registrarARN, AccessKeyID: "AKIAREGISTRAR0000000", SecretAccessKey: "registrar"},
		{ARN: workerARN, AccessKeyID: "AKIAWORKER0000000000", SecretAccessKey: "worker"},
	}
}

const (
	registrarARN = "arn:aws:iam::999999999999:role/keybroker-registrar"
	workerARN    = "arn:aws:iam::999999999999:role/keybroker-worker"
	memberRegion = "us-east-1"
	faultsPath   = "/faults"
	grantDelay   = 200 * time.Millisecond
)

func serveKMS(ctx context.Context, l net.Listener, dir string) error {
	kms, err := localkms.New(localkms.Config{Dir: dir, Principals: memberPrincipals(), GrantDelay: grantDelay, Now: time.Now})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", kms)
	mux.Handle(faultsPath, kms.AdminHandler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	fmt.Printf("serving on http://%s\n", l.Addr())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return kms.Close()
}

// A replica is one of the brokers on one database.
type replica struct {
	database, kms, owner string
	clock                func() time.Time
}

// ids mint what sorts by a replica's own clock.
func (r replica) newID() string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], uint64(r.clock().UnixMilli())<<16)
	_, _ = rand.Read(id[6:])
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(id[:])
}

func serveReplica(ctx context.Context, l net.Listener, r replica) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("replica", r.owner)
	store, err := sqlstore.OpenPostgres(ctx, r.database, sqlstore.Config{Random: rand.Reader, Logger: log})
	if err != nil {
		return err
	}
	defer store.Close()
	b, engine, err := r.wire(store, log)
	if err != nil {
		return err
	}
	pageTokenKey, err := store.Secret(ctx, "page token key", 32)
	if err != nil {
		return err
	}
	server, err := grpcapi.New(grpcapi.Config{Logger: log, Now: time.Now, NewID: r.newID, PageTokenKey: pageTokenKey}, b, engine)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := engine.Run(ctx); ctx.Err() == nil {
			return fmt.Errorf("the engine stopped: %w", err)
		}
		return nil
	})
	group.Go(func() error { return server.Serve(l) })
	group.Go(func() error {
		<-ctx.Done()
		return server.Shutdown(context.Background())
	})
	fmt.Printf("serving on %s\n", l.Addr())
	return group.Wait()
}

func (r replica) wire(store *sqlstore.Store, log *slog.Logger) (*broker.Broker, *rotation.Engine, error) {
	pace, err := pacer.New(pacer.Config{Now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	principals := memberPrincipals()
	key := func(p localkms.Principal) awskms.AccessKey {
		return awskms.AccessKey{ID: p.AccessKeyID, Secret: p.SecretAccessKey}
	}
	roles := awskms.StaticRoles(key(principals[2]), key(principals[3]))
	config := awskms.Config{Registrar: roles.Registrar, Worker: roles.Worker, ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
		RegistrarAccount: broker.RoleAccount(registrarARN), WorkerAccount: broker.RoleAccount(workerARN),
		BaseEndpoint: r.kms, Region: memberRegion, CallTimeout: 3 * time.Second, Jitter: mathrand.Float64, Pacer: pace, Now: time.Now}
	foreground, err := awskms.New(config, pacer.Foreground)
	if err != nil {
		return nil, nil, err
	}
	background, err := awskms.New(config, pacer.Background)
	if err != nil {
		return nil, nil, err
	}
	b, err := broker.New(broker.Config{
		Deployment: "chaos", RegistrarRole: registrarARN, WorkerRole: workerARN,
		ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
		GranteeAccounts: []string{"222233334444"}, KMSCallTimeout: 3 * time.Second, SweepOrphans: true,
		Windows: broker.Windows{GrantVisibility: 2 * time.Second, MaxStoreDelay: 2 * time.Second, MaxReadDelay: 3 * time.Second},
		NewID:   r.newID, NewUID: rand.Text,
	}, store.Broker(), foreground, foreground)
	if err != nil {
		return nil, nil, err
	}
	engine, err := rotation.New(rotation.Config{
		Owner: r.owner, RegistrarRole: registrarARN, WorkerRole: workerARN,
		LeaseTTL: memberLease, Probe: time.Second, Poll: 200 * time.Millisecond, Sweep: time.Second,
		Rand: mathrand.Float64, NewID: r.newID, NewProbe: rand.Text, Logger: log,
	}, store.Rotation(), b, background, background)
	return b, engine, err
}

// memberLease is how long the work of a replica that died waits for another.
const memberLease = 3 * time.Second

// startMember starts this program as a member.
func startMember(logFile string, args ...string) (*devserver.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return devserver.Run(exec.Command(self, args...), logFile, servingLine, memberVariable+"=1")
}

// writeProfiles writes the file that makes clients the customer or the service.
func writeProfiles(dir, endpoint string) (string, error) {
	var text strings.Builder
	for i, name := range []string{"customer", "service"} {
		p := memberPrincipals()[i]
		fmt.Fprintf(&text, "[profile %s]\nregion = %s\nendpoint_url = %s\naws_access_key_id = %s\naws_secret_access_key = %s\n",
			name, memberRegion, endpoint, p.AccessKeyID, p.SecretAccessKey)
	}
	path := filepath.Join(dir, "aws-config")
	return path, os.WriteFile(path, []byte(text.String()), 0o600)
}
