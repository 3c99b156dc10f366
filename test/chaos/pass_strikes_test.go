//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What is done to a pass.
const (
	kill         = "kill -9"         // of the broker that it is at
	killComplete = "kill -9 at word" // the same, when the service gives its word
	cut          = "cut"             // of the service's connection
	cutComplete  = "cut at word"
)

// keeperPoints are the named points that a pass comes by. On SQLite a broker kills
// itself there; with a configuration file, as on PostgreSQL, none does.
func keeperPoints() []string {
	return []string{"items.reencrypted", "items.committed", "inventory.attested"}
}

// A passStrike is one strike at a pass: what, and when. With a point, the broker
// that takes the place of the one that was killed kills itself there.
type passStrike struct {
	passMoment
	what, point string
}

// passJitter is how long after its moment a strike may come: a few messages.
const passJitter = 15 * time.Millisecond

// plan draws the strikes at a pass over n keys, in their order. Up to four messages
// are on their way, so those in the middle end four before the last. The points,
// and what is done when the service gives its word, come in turn.
func (s *passStory) plan(n int, attest bool) []passStrike {
	messages := (n + 99) / 100
	whats := []string{kill, cut}
	if attest {
		whats = []string{kill, cut, kill}
	}
	s.rng.Shuffle(len(whats), func(i, j int) { whats[i], whats[j] = whats[j], whats[i] })
	var plan []passStrike
	for i, at := range sortedDraws(s.rng, len(whats), max(1, messages-3)) {
		plan = append(plan, passStrike{passMoment{answered: at}, whats[i], ""})
	}
	_, alone := s.at.(alone)
	if alone {
		i := slices.IndexFunc(plan, func(p passStrike) bool { return p.what == kill })
		plan[i].point = fmt.Sprintf("%s:%d", keeperPoints()[s.turn%2], 1+s.rng.IntN(2))
		s.turn++
	}
	if !attest {
		return plan
	}
	ends := []passStrike{{passMoment{complete: true}, killComplete, ""}, {passMoment{complete: true}, cutComplete, ""}}
	if alone {
		ends = slices.Insert(ends, 0, passStrike{passMoment{answered: messages - 3}, kill, "inventory.attested:1"})
	}
	return append(plan, ends[(s.result.KeyChanges-2)%len(ends)])
}

// sortedDraws gives n numbers below max.
func sortedDraws(rng *rand.Rand, n, max int) []int {
	drawn := make([]int, n)
	for i := range drawn {
		drawn[i] = rng.IntN(max)
	}
	slices.Sort(drawn)
	return drawn
}

// strikePass strikes at a pass, at a process or at the connection to it, looks at
// what is left, and mends it.
func (s *passStory) strikePass(ctx context.Context, r *running, p passStrike, over <-chan struct{}) error {
	if err := wait(ctx, between(s.rng, 0, passJitter)); err != nil {
		return err
	}
	s.result.Struck[p.what]++
	if p.what == cut || p.what == cutComplete {
		s.k.cut()
		return nil
	}
	if err := s.kill(r); err != nil {
		return err
	}
	if _, several := s.at.(crowd); several && !p.complete {
		// The pass goes on at another replica before this one is there again.
		select {
		case <-s.k.await(passMoment{answered: s.k.log().answered + 1}):
		case <-over:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.k.gate.Lock()
	err := s.look(ctx)
	s.k.gate.Unlock()
	if err != nil {
		return err
	}
	if p.point != "" {
		if r, err = s.awaitPoint(ctx, r, p.point, over); err != nil {
			return err
		}
	}
	return s.mend(ctx, r)
}

// strikeAfter kills a process after the pass.
func (s *passStory) strikeAfter(ctx context.Context, r *running) error {
	s.result.Struck["kill -9 afterwards"]++
	if err := s.kill(r); err != nil {
		return err
	}
	if err := s.look(ctx); err != nil {
		return err
	}
	return s.mend(ctx, r)
}

// awaitPoint starts a process that kills itself, in the place of one that ended,
// and waits until it has, or the pass is over.
func (s *passStory) awaitPoint(ctx context.Context, r *running, failpoint string, over <-chan struct{}) (*running, error) {
	r, err := s.at.replace(ctx, r, "KEYBROKER_FAILPOINT="+failpoint)
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(failpoint, ":")
	select {
	case <-r.Done():
		s.result.Struck[name]++
	case <-over:
		s.result.NotReached[name]++
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := s.kill(r); err != nil {
		return nil, err
	}
	return r, s.look(ctx)
}

func (s *passStory) kill(r *running) error {
	s.k.left(r)
	return s.at.kill(r)
}

// mend starts a process in the place of one that ended, and has the owner of the
// keys open all that the service has: what it was told before is true after.
func (s *passStory) mend(ctx context.Context, r *running) error {
	s.k.gate.Lock()
	defer s.k.gate.Unlock()
	if _, err := s.at.replace(ctx, r); err != nil {
		return err
	}
	return s.check(ctx, false)
}

// look reads what a kill left in the database, and judges it.
func (s *passStory) look(ctx context.Context) error {
	before := s.k.log()
	if err := s.at.read(ctx, func(db querier) (err error) {
		s.facts, err = readFacts(ctx, db)
		return err
	}); err != nil {
		return err
	}
	return s.facts.judge(before, s.k.log())
}

// passFacts are what the database says of a key change and the service's word.
type passFacts struct {
	old      string // state of the key before the present one
	job      string // state of the last job
	attested bool
	items    int64 // that the attestation counts
	audited  int64 // keys that were moved in the pass that attested, by the audit
}

func readFacts(ctx context.Context, db querier) (f passFacts, err error) {
	var uid string
	var epoch int64
	if err := db.QueryRowContext(ctx, `select domain_uid, key_epoch from domain where domain_id = 'chaos'`).Scan(&uid, &epoch); err != nil {
		return f, fmt.Errorf("the domain: %w", err)
	}
	if err := db.QueryRowContext(ctx, `
		select state from domain_key where domain_uid = $1 and key_epoch < $2 order by key_epoch desc limit 1`, uid, epoch).Scan(&f.old); err != nil {
		return f, fmt.Errorf("the old key: %w", err)
	}
	if err := db.QueryRowContext(ctx, `
		select state from job where domain_uid = $1 order by create_time desc limit 1`, uid).Scan(&f.job); err != nil {
		return f, fmt.Errorf("the job: %w", err)
	}
	var pass string
	err = db.QueryRowContext(ctx, `
		select pass_id, items from self_inventory where domain_uid = $1 and key_epoch = $2 and kind = 'ATTESTED'`, uid, epoch).Scan(&pass, &f.items)
	if errors.Is(err, sql.ErrNoRows) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("the attestation: %w", err)
	}
	f.attested = true
	f.audited, err = auditedItems(ctx, db, uid, pass)
	return f, err
}

// auditedItems counts the keys that the audit says were moved in a pass.
func auditedItems(ctx context.Context, db querier, uid, pass string) (n int64, err error) {
	rows, err := db.QueryContext(ctx, `select detail from audit_event where domain_uid = $1 and action = 'selfInventories.reencrypt'`, uid)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var text []byte
		var detail map[string]string
		if err := rows.Scan(&text); err != nil {
			return 0, err
		}
		if err := json.Unmarshal(text, &detail); err != nil {
			return 0, fmt.Errorf("audit event %s: %w", text, err)
		}
		if detail["pass"] != pass {
			continue
		}
		items, err := strconv.ParseInt(detail["items"], 10, 64)
		if err != nil {
			return 0, err
		}
		n += items
	}
	return n, rows.Err()
}

// judge holds the facts against what was seen of the pass before they were read,
// and after: the service's word is there if it was taken, and not before it was
// given; it counts every key once, over all kills; before it the old key is not
// closed, nor is the job at its end; and no receipt is without its audit event.
func (f passFacts) judge(before, after passLog) error {
	switch {
	case !f.attested && before.attested:
		return errors.New("the service's word was taken, and is gone")
	case !f.attested && (f.old != "SUPERSEDED" || f.job == "SUCCEEDED"):
		return fmt.Errorf("nobody attested, and the old key is %s, the job %s", f.old, f.job)
	case f.attested && !after.completed:
		return errors.New("an attestation that nobody gave")
	case f.attested && f.items != int64(after.keys):
		return fmt.Errorf("attested for %d keys, and the service has %d", f.items, after.keys)
	case f.attested && (f.audited < int64(before.moved) || f.audited > int64(after.wire)):
		return fmt.Errorf("%d keys were moved, by %d items, and the audit has %d", before.moved, after.wire, f.audited)
	}
	return nil
}
