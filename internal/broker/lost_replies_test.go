package broker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// A lossy road does what is asked and loses most of the answers, as a seed has it.
type lossy struct {
	mu   sync.Mutex
	rand *rand.Rand
	lost int
}

func (l *lossy) carry(_ string, send func() (*http.Response, error)) (*http.Response, error) {
	answer, err := send()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || l.rand.Float64() > 0.6 {
		return answer, err
	}
	l.lost++
	_ = answer.Body.Close()
	return nil, errLost
}

// A client repeats its requests, with their ids, until they are answered, and
// then once more, since its own answer got lost too. Now and then it gives up.
type client struct {
	b    *bench
	road *lossy
	lost int // answers of the broker
	gave int // requests that it gave up
}

// insist reports whether the request was answered, twice.
func (c *client) insist(what string, call func() (string, error)) bool {
	c.b.t.Helper()
	first := ""
	for try := 0; ; try++ {
		got, err := call()
		switch {
		case errors.Is(err, broker.ErrUnavailable):
			if try > 0 && c.road.rand.IntN(20) == 0 {
				c.gave++
				return false
			}
		case err != nil:
			c.b.t.Fatalf("%s: %v", what, err)
		case first == "":
			first = got
			c.lost++
		case first != got:
			c.b.t.Fatalf("%s: answered with %s, then with %s", what, first, got)
		default:
			return true
		}
	}
}

// T6, I8: ten thousand answers get lost, of KMS and of the broker. Each request
// has its effect once; one sweep later KMS has no grant that the database does not
// have, and when their time has come it has none.
func TestLostReplies(t *testing.T) {
	wanted := 10_000
	if testing.Short() {
		wanted = 500
	}
	b := newActive(t)
	key := b.domain("acme").KMSKey
	l := &lossy{rand: rand.New(rand.NewPCG(1, 2))}
	c := &client{b: b, road: l}
	b.road.set(l.carry)
	ctx := t.Context()
	done := map[string]int{}
	rounds := 0
	for ; l.lost+c.lost < wanted; rounds++ {
		grant := broker.NewGrant{Request: request("CreateGrant", fmt.Sprint(rounds), "body"), Domain: "acme", Grantee: harness.ServiceRole,
			Operations: []string{"GenerateDataKey", "Decrypt"}, TTL: 24 * time.Hour}
		var id broker.GrantID
		if !c.insist("CreateGrant", func() (string, error) {
			g, err := b.Broker.CreateGrant(ctx, harness.Caller, grant)
			id = g.ID
			return string(g.UID), err
		}) {
			continue
		}
		done["create"]++
		renewal := broker.RenewGrant{Request: request("RenewGrant", fmt.Sprint(rounds), "body"), Domain: "acme", ID: id, TTL: 25 * time.Hour}
		if c.insist("RenewGrant", func() (string, error) {
			g, err := b.Broker.RenewGrant(ctx, harness.Caller, renewal)
			return g.Etag(), err
		}) {
			done["renew"]++
		}
		made := broker.NewDataKey{Request: request("CreateDataKey", fmt.Sprint(rounds), "body"), Domain: "acme"}
		if c.insist("CreateDataKey", func() (string, error) {
			k, err := b.Broker.CreateDataKey(ctx, harness.Caller, made)
			return string(k.UID), err
		}) {
			done["dataKey"]++
		}
		if rounds%2 == 0 {
			continue
		}
		end := broker.RevokeGrant{Request: request("RevokeGrant", fmt.Sprint(rounds), "body"), Domain: "acme", ID: id}
		if c.insist("RevokeGrant", func() (string, error) {
			g, err := b.Broker.RevokeGrant(ctx, harness.Caller, end)
			return g.Etag(), err
		}) {
			done["revoke"]++
		}
	}
	b.road.open()

	// Every effect, as the database and its audit have it; a request that was given
	// up has had its effect, or not.
	for name, c := range map[string]struct {
		query       string
		least, most int
	}{
		"grants":           {`select count(*) from domain_grant where not worker`, done["create"], rounds},
		"grants intended":  {`select count(*) from audit_event where action = 'grants.create' and outcome = 'INTENDED'`, done["create"], rounds},
		"renewals":         {`select count(*) from audit_event where action = 'grants.renew'`, done["renew"], done["create"]},
		"renewed twice":    {`select count(*) from (select 1 from audit_event where action = 'grants.renew' group by resource having count(*) > 1)`, 0, 0},
		"data keys":        {`select count(*) from data_key`, done["dataKey"], done["dataKey"]},
		"data keys made":   {`select count(*) from audit_event where action = 'dataKeys.create'`, done["dataKey"], done["dataKey"]},
		"revocations":      {`select count(*) from audit_event where action = 'grants.revoke'`, done["revoke"], done["revoke"]},
		"Names made twice": {`select count(*) from kms_grant where attempt > 1 and not worker`, 0, 0},
	} {
		if got := b.count(c.query); got < c.least || got > c.most {
			t.Errorf("%s: %d, want %d to %d", name, got, c.least, c.most)
		}
	}

	b.Clock.Advance(settling)
	b.sweep()
	if diff := cmp.Diff(b.liveInDatabase(), b.allGrants(key)); diff != "" {
		t.Errorf("after one sweep, in the database and at KMS: %s", diff)
	}
	b.sweepOrphans()
	if orphans := b.count(`select count(*) from audit_event where detail like '%orphan%'`); orphans != 0 {
		t.Errorf("%d orphans were left for the orphan sweep", orphans)
	}
	b.Clock.Advance(26 * time.Hour)
	b.sweep()
	b.wantNoGrants(key)
	t.Logf("%d answers lost of KMS and %d of the broker in %d rounds, %v answered, %d given up: no duplicate effect, no orphan",
		l.lost, c.lost, rounds, done, c.gave)
}

func (b *bench) liveInDatabase() map[string]bool {
	b.t.Helper()
	live := map[string]bool{}
	for _, id := range b.query(`select kms_grant_id from kms_grant where state = 'LIVE'`) {
		live[id] = true
	}
	return live
}

func (b *bench) allGrants(key broker.KeyARN) map[string]bool {
	b.t.Helper()
	ids := map[string]bool{}
	pages := kms.NewListGrantsPaginator(b.Customer, &kms.ListGrantsInput{KeyId: aws.String(string(key))})
	for pages.HasMorePages() {
		page, err := pages.NextPage(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		for _, g := range page.Grants {
			ids[aws.ToString(g.GrantId)] = true
		}
	}
	return ids
}
