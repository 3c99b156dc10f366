//go:build unix

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A grantRow is a KMS grant as the broker has recorded it.
type grantRow struct {
	grantUID, kind, kmsKey, kmsGrantID, state string
	epoch                                     int64
}

// A listed grant is one that KMS shows.
type listed struct {
	key, name string
}

// listGrants asks KMS for the domain's grants on all its keys, by id.
func (l *look) listGrants(ctx context.Context) (map[string]listed, error) {
	reserved := l.domain
	if err := l.db.QueryRowContext(ctx, `select reserved_key, reserved_value from domain where domain_id = 'chaos'`).
		Scan(&reserved.reservedKey, &reserved.reservedValue); err != nil {
		return nil, fmt.Errorf("the domain: %w", err)
	}
	found := map[string]listed{}
	for _, key := range l.keys {
		pages := kms.NewListGrantsPaginator(l.customer, &kms.ListGrantsInput{KeyId: &key})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, fmt.Errorf("grants on %s: %w", key, err)
			}
			for _, g := range page.Grants {
				if reserved.owns(g) {
					found[aws.ToString(g.GrantId)] = listed{key: key, name: aws.ToString(g.Name)}
				}
			}
		}
	}
	return found, nil
}

// checkGrants: KMS holds no grant of the domain that the database does not know
// of, none that it takes for gone, and at the end none of an older epoch.
//
// What was listed before the snapshot must be in it. What the snapshot takes for
// gone must not be listed after it.
func (l *look) checkGrants(ctx context.Context) error {
	recorded, err := l.readGrants(ctx)
	if err != nil {
		return err
	}
	after := l.listed
	if l.alive {
		if after, err = l.listGrants(ctx); err != nil {
			return err
		}
	}
	made := map[string][]string{} // ids by what they are for: one is enough
	for id, g := range l.listed {
		row, known := recorded[g.name]
		_, still := after[id]
		switch {
		case !known || row.kmsKey != g.key:
			l.findings.add("KMS holds grant %s, Name %q, on %s: the database has no such row", id, g.name, g.key)
			continue
		case !still: // it was retired while we looked
			continue
		case row.state != "INTENDED" && row.state != "LIVE" && row.state != "RETIRING",
			row.kmsGrantID != "" && row.kmsGrantID != id:
			l.findings.add("KMS holds grant %s, Name %q: the database has it as %s %s", id, g.name, row.state, row.kmsGrantID)
		case l.final && row.epoch < l.domain.epoch:
			l.findings.liveOld++
			l.findings.add("KMS holds grant %s, Name %q, of an older epoch: the domain is at %d", id, g.name, l.domain.epoch)
		}
		what := fmt.Sprintf("grant %s, %s, epoch %d", row.grantUID, row.kind, row.epoch)
		made[what] = append(made[what], id)
	}
	for what, ids := range made {
		if len(ids) > 1 {
			l.findings.add("KMS holds %d grants for %s: %v", len(ids), what, ids)
		}
	}
	if l.final {
		return l.checkLive(ctx, made)
	}
	return nil
}

func (l *look) readGrants(ctx context.Context) (map[string]grantRow, error) {
	found, err := l.db.QueryContext(ctx, `
		select name, grant_uid, kind, kms_key, kms_grant_id, state, key_epoch
		from kms_grant where domain_uid = $1`, l.domain.uid)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	byName := map[string]grantRow{}
	for found.Next() {
		var name string
		var r grantRow
		if err := found.Scan(&name, &r.grantUID, &r.kind, &r.kmsKey, &r.kmsGrantID, &r.state, &r.epoch); err != nil {
			return nil, err
		}
		byName[name] = r
	}
	return byName, found.Err()
}

// owns reports whether a grant is bound to the domain, whoever made it.
func (d domainRow) owns(g types.GrantListEntry) bool {
	return g.Constraints != nil && (g.Constraints.EncryptionContextSubset[d.reservedKey] == d.reservedValue ||
		g.Constraints.EncryptionContextEquals[d.reservedKey] == d.reservedValue)
}

// checkLive: what the broker calls an active grant is one at KMS, on the present
// key, and unwraps what it is for.
func (l *look) checkLive(ctx context.Context, made map[string][]string) error {
	found, err := l.db.QueryContext(ctx, `
		select grant_uid, operations like '%GenerateDataKey%' from domain_grant where domain_uid = $1 and state = 'ACTIVE'`, l.domain.uid)
	if err != nil {
		return err
	}
	defer found.Close()
	for found.Next() {
		var uid string
		var wraps bool
		if err := found.Scan(&uid, &wraps); err != nil {
			return err
		}
		kinds := []string{"unwrap"}
		if wraps {
			kinds = append(kinds, "wrap")
		}
		for _, kind := range kinds {
			if what := fmt.Sprintf("grant %s, %s, epoch %d", uid, kind, l.domain.epoch); len(made[what]) == 0 {
				l.findings.add("%s is ACTIVE, and KMS holds none", what)
			}
		}
	}
	if err := found.Err(); err != nil {
		return err
	}
	// The service's role has no right but its grant. A sample is enough: one row
	// is like another to a grant without constraints.
	service, left := l.client(l.checker.service), 50
	for _, r := range l.rows {
		if left--; left < 0 {
			break
		}
		want, acknowledged := l.acked.digests[r.op]
		if got, err := unwrap(ctx, service, r); err != nil || acknowledged && got != want {
			l.findings.undecryptable++
			l.findings.add("the service unwraps %s by its grant: %v", r.id, err)
		}
	}
	return nil
}

// checkEffects: what was acknowledged happened, and no request did twice what it
// was to do once.
func (l *look) checkEffects(ctx context.Context) error {
	grants, err := l.grantsByOp(ctx)
	if err != nil {
		return err
	}
	revoked, err := l.count(ctx, `select 'domains/chaos/grants/' || grant_id, 1 from domain_grant where domain_uid = $1 and state = 'REVOKED'`)
	if err != nil {
		return err
	}
	audited := map[string]map[string]int{}
	for _, action := range []string{"dataKeys.create", "dataKeys.delete", "grants.create", "grants.renew", "grants.revoke"} {
		if audited[action], err = l.count(ctx, `
			select request_id, count(*) from audit_event
			where domain_uid = $1 and action = '`+action+`' and outcome = 'DONE' and request_id <> '' group by request_id`); err != nil {
			return err
		}
	}
	for op, name := range l.acked.keys {
		if n := audited["dataKeys.create"][op]; n != 1 {
			l.findings.add("%s of request %s has %d audit events", name, op, n)
		}
	}
	for op, name := range l.acked.grants {
		if grants[op] != 1 {
			l.findings.lost++
			l.findings.add("%s was acknowledged for %s, which has %d grants", name, op, grants[op])
		}
	}
	for op := range l.acked.renewed {
		if n := audited["grants.renew"][op]; n != 1 {
			l.findings.add("renewal %s was acknowledged and has %d audit events", op, n)
		}
	}
	for name := range l.acked.revoked {
		if revoked[name] != 1 {
			l.findings.stale++
			l.findings.add("%s was revoked, which was acknowledged, and is not", name)
		}
	}
	// Also those that were never acknowledged.
	for what, counts := range map[string]map[string]int{"grants": grants, "data keys in the audit": audited["dataKeys.create"],
		"deletions in the audit": audited["dataKeys.delete"], "grants in the audit": audited["grants.create"],
		"renewals in the audit": audited["grants.renew"], "revocations in the audit": audited["grants.revoke"]} {
		for op, n := range counts {
			if n > 1 {
				l.findings.add("request %s had %d effects: %s", op, n, what)
			}
		}
	}
	return nil
}

// grantsByOp counts the grants that each request made, from their constraints.
func (l *look) grantsByOp(ctx context.Context) (map[string]int, error) {
	subsets, err := l.count(ctx, `select constraint_subset, count(*) from domain_grant where domain_uid = $1 group by constraint_subset`)
	if err != nil {
		return nil, err
	}
	grants := map[string]int{}
	for text, n := range subsets {
		var subset map[string]string
		if err := json.Unmarshal([]byte(text), &subset); err != nil {
			return nil, fmt.Errorf("constraint %s: %w", text, err)
		}
		if op := subset[opKey]; op != "" {
			grants[op] += n
		}
	}
	return grants, nil
}

// count runs a query of the domain for texts and counts.
func (l *look) count(ctx context.Context, query string) (map[string]int, error) {
	found, err := l.db.QueryContext(ctx, query, l.domain.uid)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	counts := map[string]int{}
	for found.Next() {
		var op string
		var n int
		if err := found.Scan(&op, &n); err != nil {
			return nil, err
		}
		counts[op] = n
	}
	return counts, found.Err()
}
