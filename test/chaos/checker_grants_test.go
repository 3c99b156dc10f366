//go:build unix

package chaos_test

import (
	"context"
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

// checkGrants: KMS holds no grant of the domain that the database does not know
// of, none that it takes for gone, and at the end none of an older epoch.
func (l *look) checkGrants(ctx context.Context) error {
	recorded, err := l.readGrants(ctx)
	if err != nil {
		return err
	}
	made := map[string][]string{} // ids by what they are for: one is enough
	for _, key := range l.keys {
		pages := kms.NewListGrantsPaginator(l.customer, &kms.ListGrantsInput{KeyId: &key})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return fmt.Errorf("grants on %s: %w", key, err)
			}
			for _, g := range page.Grants {
				if !l.ours(g) {
					continue
				}
				name := aws.ToString(g.Name)
				row, known := recorded[name]
				id := aws.ToString(g.GrantId)
				switch {
				case !known || row.kmsKey != key:
					l.findings.add("KMS holds grant %s, Name %q, on %s: the database has no such row", id, name, key)
					continue
				case row.state != "INTENDED" && row.state != "LIVE" && row.state != "RETIRING",
					row.kmsGrantID != "" && row.kmsGrantID != id:
					l.findings.add("KMS holds grant %s, Name %q: the database has it as %s %s", id, name, row.state, row.kmsGrantID)
				case l.final && row.epoch < l.domain.epoch:
					l.findings.liveOld++
					l.findings.add("KMS holds grant %s, Name %q, of an older epoch: the domain is at %d", id, name, l.domain.epoch)
				}
				what := fmt.Sprintf("grant %s, %s, epoch %d", row.grantUID, row.kind, row.epoch)
				made[what] = append(made[what], id)
			}
		}
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

// ours reports whether a grant is bound to the domain, whoever made it.
func (l *look) ours(g types.GrantListEntry) bool {
	return g.Constraints != nil && (g.Constraints.EncryptionContextSubset[l.domain.reservedKey] == l.domain.reservedValue ||
		g.Constraints.EncryptionContextEquals[l.domain.reservedKey] == l.domain.reservedValue)
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
		if got, err := unwrap(ctx, service, r); err != nil || got != l.work.digests[r.op] {
			l.findings.undecryptable++
			l.findings.add("the service unwraps %s by its grant: %v", r.id, err)
		}
	}
	return nil
}

// checkEffects: what was acknowledged happened, and no request did twice what it
// was to do once.
func (l *look) checkEffects(ctx context.Context) error {
	grants, err := l.count(ctx, `
		select json_extract(constraint_subset, '$.`+opKey+`') as op, count(*) from domain_grant
		where domain_uid = $1 and op is not null group by op`)
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
	l.work.mu.Lock()
	defer l.work.mu.Unlock()
	for op, name := range l.work.keys {
		if n := audited["dataKeys.create"][op]; n != 1 {
			l.findings.add("%s of request %s has %d audit events", name, op, n)
		}
	}
	for op, name := range l.work.grants {
		if grants[op] != 1 {
			l.findings.lost++
			l.findings.add("%s was acknowledged for %s, which has %d grants", name, op, grants[op])
		}
	}
	for op := range l.work.renewed {
		if n := audited["grants.renew"][op]; n != 1 {
			l.findings.add("renewal %s was acknowledged and has %d audit events", op, n)
		}
	}
	for name := range l.work.revoked {
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
