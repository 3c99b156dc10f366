package broker_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// retireQuota is how many RetireGrant calls KMS takes a second (KMS Developer
// Guide, Request quotas).
const retireQuota = 50

// A quota is a road that lets as many RetireGrant calls through as KMS would:
// each takes the test's clock its share of a second. Those of the refused KMS
// grants are denied.
type quota struct {
	mu      sync.Mutex
	clock   *harness.Clock
	refused map[string]bool
	calls   int
	denied  func()
}

var grantIDPattern = regexp.MustCompile(`"GrantId":"([^"]+)"`)

func (q *quota) over(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(req *http.Request) (*http.Response, error) {
		if req.Header.Get("X-Amz-Target") != "TrentService.RetireGrant" {
			return next.RoundTrip(req)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		q.mu.Lock()
		defer q.mu.Unlock()
		q.calls++
		q.clock.Advance(time.Second / retireQuota)
		if id := grantIDPattern.FindSubmatch(body); id != nil && q.refused[string(id[1])] {
			q.denied()
			return refusal("AccessDeniedException"), nil
		}
		return next.RoundTrip(req)
	})
}

// newScale gives a bench with n grants of one KMS grant each, whose ends are
// spread evenly over a span, and the first end.
func newScale(t *testing.T, n int, span time.Duration) (*bench, *quota, time.Time) {
	t.Helper()
	const ttl = 24 * time.Hour
	b, q := &bench{t: t, dir: t.TempDir(), road: &road{}}, &quota{}
	h, err := harness.New(t.Context(), harness.Config{Dir: b.dir, Windows: windows, Transport: q.over})
	if err != nil {
		t.Fatal(err)
	}
	b.Bench, q.clock = h, h.Clock
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	b.onboard("acme")
	q.calls = 0
	first := b.Clock.Now().Add(ttl)
	for i := range n {
		b.mustGrant(broker.NewGrant{Domain: "acme", ID: broker.GrantID(fmt.Sprintf("g%05d", i)), Grantee: harness.ServiceRole,
			Operations: []string{"Decrypt"}, TTL: first.Add(span * time.Duration(i) / time.Duration(n)).Sub(b.Clock.Now())})
	}
	b.Clock.Advance(first.Sub(b.Clock.Now()))
	return b, q, first
}

// count gives the one number that a query gives.
func (b *bench) count(query string) int {
	b.t.Helper()
	n, err := strconv.Atoi(b.query(query)[0])
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

const countRetired = `select count(*) from kms_grant where not worker and state = 'RETIRED'`

// overdue gives by how much KMS's grants outlived the grants' ends, sorted.
func (b *bench) overdue() []time.Duration {
	b.t.Helper()
	var overdue []time.Duration
	for _, text := range b.query(`select k.end_time - g.expire_time from kms_grant k
		join domain_grant g on g.grant_uid = k.grant_uid where not k.worker and k.state = 'RETIRED'`) {
		us, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			b.t.Fatal(err)
		}
		overdue = append(overdue, time.Duration(us)*time.Microsecond)
	}
	slices.Sort(overdue)
	return overdue
}

// T6: 5,000 grants whose time comes within two minutes, 42 a second, are retired
// at KMS within its quota, and of a hundred no more than one is a minute overdue.
func TestExpiryAtScale(t *testing.T) {
	grants := 5000
	if testing.Short() {
		grants = 500
	}
	span := time.Duration(grants) * 24 * time.Millisecond
	b, q, first := newScale(t, grants, span)
	for b.count(countRetired) < grants {
		b.sweep()
		b.Clock.Advance(10 * time.Second)
		if b.Clock.Now().Sub(first) > span+5*time.Minute {
			t.Fatalf("only %d of %d grants are retired", b.count(countRetired), grants)
		}
	}
	overdue := b.overdue()
	p99 := overdue[grants*99/100]
	if p99 > time.Minute {
		t.Errorf("overdue: p99 %s, want at most a minute", p99)
	}
	if q.calls != grants {
		t.Errorf("%d RetireGrant calls for %d grants", q.calls, grants)
	}
	b.wantNoGrants(b.domain("acme").KMSKey)
	t.Logf("%d grants over %s: overdue p50 %s, p99 %s, longest %s", grants, span, overdue[grants/2], p99, overdue[grants-1])
}

// Many grants whose time comes at one moment all end at once in the database,
// and at KMS as fast as its quota allows.
func TestExpiryBurst(t *testing.T) {
	const grants = 500
	b, q, _ := newScale(t, grants, 0)
	b.sweep()
	if live := b.count(`select count(*) from domain_grant where not worker and state = 'ACTIVE'`); live != 0 {
		t.Errorf("%d grants are live after the sweep", live)
	}
	overdue := b.overdue()
	if len(overdue) != grants || q.calls != grants || overdue[grants-1] > grants*time.Second/retireQuota {
		t.Errorf("%d grants retired by %d calls, the last %s overdue", len(overdue), q.calls, overdue[len(overdue)-1])
	}
}

// Grants that KMS never retires, more of them than a sweep takes up at a time,
// keep no other waiting; they are tried again, ever more rarely.
func TestRefusedGrantsStarveNobody(t *testing.T) {
	const refused, others = 250, 30
	b, q, first := newScale(t, refused+others, time.Second)
	tries := map[int]int{} // by minute
	q.denied = func() { tries[int(b.Clock.Now().Sub(first).Minutes())]++ }
	q.refused = map[string]bool{}
	for _, id := range b.query(`select k.kms_grant_id from kms_grant k join domain_grant g on g.grant_uid = k.grant_uid
		where not k.worker order by g.expire_time limit ?`, refused) { // those that are due first
		q.refused[id] = true
	}
	b.Clock.Advance(time.Second)
	if err := b.Broker.Sweep(t.Context()); err == nil {
		t.Error("the sweep says nothing of the refusals")
	}
	if got := b.count(countRetired); got != others {
		t.Errorf("%d of the %d that KMS retires are retired", got, others)
	}
	for b.Clock.Now().Sub(first) < time.Hour {
		b.Clock.Advance(10 * time.Second)
		_ = b.Broker.Sweep(t.Context())
	}
	late := 0
	for minute := 45; minute < 60; minute++ {
		late += tries[minute]
	}
	if tries[0] < refused || late < refused || late > 2*refused {
		t.Errorf("tries in the first minute %d, in the last quarter of an hour %d", tries[0], late)
	}
	q.refused = nil
	b.Clock.Advance(15 * time.Minute)
	b.sweep()
	b.wantNoGrants()
}
