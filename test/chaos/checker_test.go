//go:build unix

package chaos_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/keybroker/keybroker/internal/localkms"
)

// A checker holds what was acknowledged against what is stored, without the
// broker: it reads the database by its own SQL, and asks KMS as the key's owner.
//
// On SQLite it works on a copy of the files that a dead process left, so that
// what it finds is what the next process finds. On PostgreSQL it reads one
// snapshot beside living replicas, and asks the KMS that they use.
type checker struct {
	work              *workload
	customer, service aws.Config
	keys              []string // all that the customer ever gave the domain

	// What the last look saw.
	rows     map[string]row      // by data key id
	unwraps  map[[32]byte]digest // ciphertext and key: an unwrapping that worked works again
	findings findings
}

// findings count what must not be; each is explained in problems.
type findings struct {
	lost, undecryptable, stale, liveOld int
	problems                            []string
}

// problemsKept bounds what is printed when everything is wrong.
const problemsKept = 30

func (f *findings) add(format string, args ...any) {
	if len(f.problems) < problemsKept {
		f.problems = append(f.problems, fmt.Sprintf(format, args...))
	}
}

// A row is a data key as it is stored, with the key of its epoch.
type row struct {
	id, op         string
	ciphertext     []byte
	context        map[string]string
	epoch, version int64
	kmsKey         string
}

// A jobRow is the last job as it is stored.
type jobRow struct {
	phase, state string
	pending      int // rows below the domain's epoch
}

// found says where the crash met the job.
func (j jobRow) found() string {
	if j.state == "RUNNING" {
		return j.phase
	}
	return j.state
}

// A querier is a database that nobody writes to, or a snapshot of one.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// A look is one reading.
type look struct {
	*checker
	db       querier
	client   func(profile aws.Config) *kms.Client
	customer *kms.Client
	acked    acknowledged      // by the time of the snapshot
	listed   map[string]listed // KMS's grants of the keys before the snapshot, by id
	domain   domainRow
	alive    bool // there are replicas at work
	final    bool // the job has ended
	anew     bool // unwrap every row, whatever was seen before
}

type domainRow struct {
	uid, reservedKey, reservedValue string
	epoch                           int64
}

// look reads the files in data. With final, the job has ended, and every
// row is unwrapped anew. It gives the last job. tamper, if set, is SQL that
// spoils the copy first: a checker has to be seen to fail.
func (c *checker) look(ctx context.Context, data, tmp string, final bool, tamper string) (_ jobRow, err error) {
	dir, err := os.MkdirTemp(tmp, "look-")
	if err != nil {
		return jobRow{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Not the -shm: it is shared memory, which a crashed machine has none of.
	for _, file := range []string{"keybroker.db", "keybroker.db-wal", "kms/journal"} {
		if err := copyFile(filepath.Join(dir, file), filepath.Join(data, file)); err != nil {
			return jobRow{}, err
		}
	}
	if err := spoil(ctx, filepath.Join(dir, "keybroker.db"), tamper); err != nil {
		return jobRow{}, err
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "keybroker.db")+"?mode=ro")
	if err != nil {
		return jobRow{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	journal, err := c.openKMS(ctx, filepath.Join(dir, "kms"))
	if err != nil {
		return jobRow{}, err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	l := &look{checker: c, db: db, final: final, anew: final && tamper == "", acked: c.work.acknowledged(),
		client: func(profile aws.Config) *kms.Client {
			return kms.NewFromConfig(profile, func(o *kms.Options) {
				o.BaseEndpoint = aws.String("http://kms.test")
				o.HTTPClient = &http.Client{Transport: localkms.RoundTripper(journal)}
			})
		}}
	if err := l.integrity(ctx); err != nil {
		return jobRow{}, err
	}
	l.customer = l.client(c.customer)
	if l.listed, err = l.listGrants(ctx); err != nil {
		return jobRow{}, err
	}
	return l.check(ctx)
}

// check reads everything once, and gives the last job.
func (l *look) check(ctx context.Context) (jobRow, error) {
	err := l.db.QueryRowContext(ctx, `select domain_uid, reserved_key, reserved_value, key_epoch from domain where domain_id = 'chaos'`).
		Scan(&l.domain.uid, &l.domain.reservedKey, &l.domain.reservedValue, &l.domain.epoch)
	if err != nil {
		return jobRow{}, fmt.Errorf("the domain: %w", err)
	}
	if err := errors.Join(l.checkRows(ctx), l.checkGrants(ctx), l.checkEffects(ctx)); err != nil {
		return jobRow{}, err
	}
	var j jobRow
	err = l.db.QueryRowContext(ctx, `
		select phase, state, (select count(*) from data_key where domain_uid = $1 and key_epoch < $2)
		from job where domain_uid = $1 order by create_time desc limit 1`, l.domain.uid, l.domain.epoch).Scan(&j.phase, &j.state, &j.pending)
	return j, err
}

// spoil runs SQL on a copy.
func spoil(ctx context.Context, path, tamper string) error {
	if tamper == "" {
		return nil
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, tamper)
	return errors.Join(err, db.Close())
}

// copyFile copies a file, or nothing if there is none.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// The principals of --dev that are asked here.
const (
	customerARN = "arn:aws:iam::111122223333:root"
	serviceARN  = "arn:aws:iam::222233334444:role/orders"
)

// openKMS opens the journal that the killed KMS left, without a delay: a grant
// that others do not see yet is one.
func (c *checker) openKMS(ctx context.Context, dir string) (*localkms.KMS, error) {
	var principals []localkms.Principal
	for arn, profile := range map[string]aws.Config{customerARN: c.customer, serviceARN: c.service} {
		key, err := profile.Credentials.Retrieve(ctx)
		if err != nil {
			return nil, err
		}
		principals = append(principals, localkms.Principal{ARN: arn, AccessKeyID: key.AccessKeyID, SecretAccessKey: key.SecretAccessKey})
	}
	journal, err := localkms.New(localkms.Config{Dir: dir, Principals: principals, Now: time.Now})
	if err != nil {
		return nil, fmt.Errorf("KMS's journal after a crash: %w", err)
	}
	return journal, nil
}

func (l *look) integrity(ctx context.Context) error {
	for query, want := range map[string]string{
		"pragma integrity_check":                              "ok",
		"select count(*) || '' from pragma_foreign_key_check": "0",
	} {
		var got string
		if err := l.db.QueryRowContext(ctx, query).Scan(&got); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
		if got != want {
			l.findings.add("%s: %s", query, got)
		}
	}
	return nil
}

// checkRows: every acknowledged data key is there, once; every row comes out of
// KMS under the very key that is recorded for it, as what it was when it was
// made; none went back to an earlier version.
func (l *look) checkRows(ctx context.Context) error {
	rows, err := l.readRows(ctx)
	if err != nil {
		return err
	}
	byOp := map[string][]row{}
	earlier := l.rows
	l.rows = make(map[string]row, len(rows))
	for _, r := range rows {
		byOp[r.op] = append(byOp[r.op], r)
		before, known := earlier[r.id]
		switch {
		case known && (r.version < before.version || r.epoch < before.epoch):
			l.findings.stale++
			l.findings.add("row %s went back from version %d of epoch %d to %d of %d", r.id, before.version, before.epoch, r.version, r.epoch)
		case l.final && r.epoch != l.domain.epoch:
			l.findings.stale++
			l.findings.add("row %s is left at epoch %d, the domain is at %d", r.id, r.epoch, l.domain.epoch)
		}
		l.rows[r.id] = r
	}
	for _, acknowledged := range []map[string]string{l.acked.keys, l.acked.imported} {
		for op, name := range acknowledged {
			if len(byOp[op]) == 0 && !l.work.givenUp(op, name) {
				l.findings.lost++
				l.findings.add("%s was acknowledged for %s and is gone", name, op)
			}
		}
	}
	for name, op := range l.acked.deleted {
		if len(byOp[op]) > 0 {
			l.findings.stale++
			l.findings.add("%s was deleted, which was acknowledged, and is back", name)
		}
	}
	for op, made := range byOp {
		if len(made) > 1 {
			l.findings.add("request %s made %d data keys: %s, %s", op, len(made), made[0].id, made[1].id)
		}
	}
	return l.unwrapAll(ctx, rows)
}

func (l *look) readRows(ctx context.Context) ([]row, error) {
	found, err := l.db.QueryContext(ctx, `
		select k.data_key_id, k.ciphertext, k.context, k.key_epoch, k.version, e.kms_key
		from data_key k join domain_key e on e.domain_uid = k.domain_uid and e.key_epoch = k.key_epoch
		where k.domain_uid = $1`, l.domain.uid)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var rows []row
	for found.Next() {
		var r row
		var pairs []byte
		if err := found.Scan(&r.id, &r.ciphertext, &pairs, &r.epoch, &r.version, &r.kmsKey); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(pairs, &r.context); err != nil {
			return nil, fmt.Errorf("context of %s: %w", r.id, err)
		}
		r.op = r.context[opKey]
		r.context[l.domain.reservedKey] = l.domain.reservedValue
		rows = append(rows, r)
	}
	return rows, found.Err()
}

func (l *look) unwrapAll(ctx context.Context, rows []row) error {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	earlier, digests := l.unwraps, l.work.acknowledged().digests
	l.unwraps = make(map[[32]byte]digest, len(rows))
	for _, r := range rows {
		group.Go(func() error {
			id := sha256.Sum256(append([]byte(r.kmsKey+"\x00"), r.ciphertext...))
			mu.Lock()
			got, known := earlier[id]
			mu.Unlock()
			var err error
			if !known || l.anew {
				got, err = unwrap(ctx, l.customer, r)
			}
			mu.Lock()
			defer mu.Unlock()
			want, acknowledged := digests[r.op]
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				l.findings.undecryptable++
				l.findings.add("row %s (version %d, epoch %d) under %s: %v", r.id, r.version, r.epoch, r.kmsKey, err)
			case acknowledged && got != want:
				l.findings.undecryptable++
				l.findings.add("row %s (version %d, epoch %d) holds another data key than was acknowledged", r.id, r.version, r.epoch)
			default:
				l.unwraps[id] = got
			}
			return nil
		})
	}
	return group.Wait()
}

func unwrap(ctx context.Context, as *kms.Client, r row) (digest, error) {
	out, err := as.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: r.ciphertext, KeyId: &r.kmsKey, EncryptionContext: r.context})
	if err != nil {
		return digest{}, err
	}
	return sha256.Sum256(out.Plaintext), nil
}
