package model_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"pgregory.net/rapid"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

// The services' grants.

const long = 300 * 24 * time.Hour

// firstGrant is the service's own, for as long as the walk takes. A service that
// cannot wrap has nothing on its way, so nothing drains.
func (m *machine) firstGrant(t *rapid.T, tn *tenant) {
	operations := []string{"Decrypt"}
	if rapid.Bool().Draw(t, "service wraps") {
		operations = append(operations, "GenerateDataKey")
	}
	m.newGrant(t, tn, harness.ServiceRole, operations, long)
}

func (m *machine) createGrant(t *rapid.T) {
	tn := m.anyTenant(t)
	operations := rapid.SampledFrom([][]string{{"Decrypt"}, {"Decrypt", "GenerateDataKey"}, {"GenerateDataKey"}}).Draw(t, "operations")
	ttl := rapid.SampledFrom([]time.Duration{broker.MinGrantTTL, 10 * time.Minute, long}).Draw(t, "ttl")
	m.newGrant(t, tn, harness.ReportsRole, operations, ttl)
}

func (m *machine) newGrant(t *rapid.T, tn *tenant, role string, operations []string, ttl time.Duration) {
	m.serial++
	in := broker.NewGrant{Request: m.newRequest("CreateGrant"), Domain: tn.id, ID: broker.GrantID(fmt.Sprintf("grant-%d", m.serial)),
		Grantee: role, Operations: operations, TTL: ttl}
	h := &held{id: in.ID, role: role, operations: operations}
	ask := func(t *rapid.T) {
		defer m.stolen.asked(h.uid) // also what is taken away meanwhile
		view, err := m.api().Broker.CreateGrant(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err, broker.ReasonGrantEnded, broker.ReasonRequestInProgress) {
			return
		}
		if h.uid != "" && view.UID != h.uid {
			t.Fatalf("I8: one request_id made grants %s and %s", h.uid, view.UID)
		}
		if h.uid == "" {
			h.uid = view.UID
			tn.held = append(tn.held, h)
		}
		if !view.Live() {
			h.ended = true
			return
		}
		h.expires, h.tokens = view.ExpireTime, reveal(view.Tokens)
		m.tryTokens(t, tn, h)
	}
	ask(t)
	m.remember(tn, "create grant", ask)
}

// tryTokens: a grant can be used at once, with the tokens that came with it.
func (m *machine) tryTokens(t *rapid.T, tn *tenant, h *held) {
	d := m.domainNow(tn.uid)
	if !h.may("GenerateDataKey") || m.unusable[d.KMSKey] != "" || !m.good(tn, h) {
		return
	}
	_, err := m.client(h).GenerateDataKey(m.ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(d.KMSKey)), KeySpec: types.DataKeySpecAes256,
		EncryptionContext: map[string]string{d.Reserved.Key: d.Reserved.Value}, GrantTokens: h.tokens})
	if err != nil {
		t.Fatalf("service cannot use %s with the tokens of its answer: %v", h.id, err)
	}
}

func (m *machine) anyGrant(t *rapid.T) (*tenant, *held) {
	tn := m.anyTenant(t, hasGrants)
	return tn, rapid.SampledFrom(tn.held).Draw(t, "grant")
}

// renewGrant is also the only way back for a grant that the customer took away.
func (m *machine) renewGrant(t *rapid.T) {
	tn, h := m.anyGrant(t)
	in := broker.RenewGrant{Request: m.newRequest("RenewGrant"), Domain: tn.id, ID: h.id, Reason: "model",
		TTL: rapid.SampledFrom([]time.Duration{broker.MinGrantTTL, long}).Draw(t, "ttl")}
	if m.storm && rapid.Bool().Draw(t, "without a reason") {
		in.Reason = ""
	}
	ask := func(t *rapid.T) {
		defer m.stolen.asked(h.uid) // also what is taken away meanwhile
		was := m.grantNow(tn, h.uid).State
		view, err := m.api().Broker.RenewGrant(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err, m.notRenewable(tn, h, in)...) {
			return
		}
		if view.ExpireTime.Before(h.expires) {
			t.Fatalf("I7: renewing %s moved its end from %s back to %s", h.id, h.expires, view.ExpireTime)
		}
		if !view.Live() {
			return
		}
		if was == broker.GrantRevokedByCustomer && in.Reason == "" {
			t.Fatalf("I7: %s, which the customer took away, was renewed without a reason", h.id)
		}
		h.expires, h.tokens = view.ExpireTime, reveal(view.Tokens)
		m.tryTokens(t, tn, h)
	}
	ask(t)
	m.remember(tn, "renew grant", ask)
}

// notRenewable gives the reasons for which a renewal may be refused.
func (m *machine) notRenewable(tn *tenant, h *held, in broker.RenewGrant) []broker.Reason {
	reasons := []broker.Reason{broker.ReasonRequestInProgress}
	if h.ending || h.ended || !m.now().Before(h.expires) {
		reasons = append(reasons, broker.ReasonGrantEnded)
	}
	if m.grantNow(tn, h.uid).State == broker.GrantRevokedByCustomer && in.Reason == "" {
		reasons = append(reasons, broker.ReasonFieldInvalid)
	}
	return reasons
}

// grantNow reads a grant's row.
func (m *machine) grantNow(tn *tenant, uid broker.GrantUID) (g broker.Grant) {
	_ = m.bench.Store.Broker().View(m.ctx, func(tx broker.Tx) (err error) {
		g, err = tx.GrantByUID(m.ctx, tn.uid, uid)
		return err
	})
	return g
}

func (m *machine) revokeGrant(t *rapid.T) {
	tn, h := m.anyGrant(t)
	in := broker.RevokeGrant{Request: m.newRequest("RevokeGrant"), Domain: tn.id, ID: h.id, Reason: "model"}
	ask := func(t *rapid.T) {
		h.ending = true
		view, err := m.api().Broker.RevokeGrant(m.ctx, harness.Caller, in)
		if m.refused(t, tn, err) {
			return
		}
		h.ended = true
		if view.Live() || view.State == broker.GrantRevokedByCustomer {
			t.Fatalf("grant %s is %s after it was revoked", h.id, view.State)
		}
	}
	ask(t)
	m.remember(tn, "revoke grant", ask)
}

// plantForeign puts grants on a key that are none of ours, though we might retire
// them: of two other deployments, one with a Name that begins as ours do, and of
// the customer.
func (m *machine) plantForeign(t *rapid.T, key broker.KeyARN) {
	m.planted = m.now()
	for _, name := range []string{"kb/elsewhere/00000000000000000000000001/wrap/1/1", "kb/" + harness.Deployment + "2/00000000000000000000000002/unwrap/1/1", "backup", ""} {
		in := &kms.CreateGrantInput{KeyId: aws.String(string(key)), GranteePrincipal: aws.String(harness.ServiceRole),
			RetiringPrincipal: aws.String(harness.RegistrarRole), Operations: []types.GrantOperation{types.GrantOperationDescribeKey}}
		if name != "" {
			in.Name = aws.String(name)
		}
		out, err := m.bench.Customer.CreateGrant(m.ctx, in)
		fatal(t, err)
		m.foreign[aws.ToString(out.GrantId)] = true
	}
}

// checkGrants holds the grants in the database against what the model knows of
// them.
func (m *machine) checkGrants(t *rapid.T, tn *tenant, after *domainState) {
	for _, h := range tn.held {
		g, there := after.grant(h.uid)
		if !there {
			t.Fatalf("I14: grant %s is gone from the database", h.id)
		}
		switch g.State {
		case broker.GrantActive:
			if h.ended || tn.deleted {
				t.Fatalf("grant %s is ACTIVE, and was ended", h.id)
			}
		case broker.GrantRevoked:
			if !h.ending && !tn.deleting {
				t.Fatalf("grant %s is REVOKED, and nobody asked for it", h.id)
			}
			h.ended = true
		case broker.GrantExpired:
			if m.now().Before(h.expires) {
				t.Fatalf("I7: grant %s has expired %s early", h.id, h.expires.Sub(m.now()))
			}
			h.ended = true
		case broker.GrantRevokedByCustomer:
			m.tally.met("grant revoked by customer")
			if !slices.ContainsFunc(after.atKMS, func(k broker.KMSGrant) bool { return k.Grant == h.uid && m.stolen.ids[k.KMSGrantID] }) {
				t.Fatalf("grant %s counts as taken away by the customer, who did not", h.id)
			}
		default:
			t.Fatalf("grant %s, which was answered, is %s", h.id, g.State)
		}
	}
	for _, k := range after.atKMS {
		if k.State == broker.KMSGrantGone && !m.stolen.ids[k.KMSGrantID] {
			t.Fatalf("%s counts as taken away by the customer, who did not", k.Name)
		}
	}
}

// checkListed holds what KMS shows against the database: every grant has a row,
// for the same key, domain and operations (I4, I7), and none is there that the
// row says is retired or gone, or whose epoch is done with (I3).
func (m *machine) checkListed(t *rapid.T, now *state) {
	for _, l := range now.listed {
		name := aws.ToString(l.Name)
		row, known := now.kmsGrant(name)
		if !known || row.KMSKey != l.key {
			t.Fatalf("I7: KMS shows %s on %s, and the database has no such grant", name, l.key)
		}
		d := now.domains[row.Domain]
		g, _ := d.grant(row.Grant)
		if l.Constraints == nil || l.Constraints.EncryptionContextSubset[d.domain.Reserved.Key] != d.domain.Reserved.Value {
			t.Fatalf("I4: %s at KMS is not bound to the reserved pair of %s", name, d.domain.ID)
		}
		if g.UID != "" && (aws.ToString(l.GranteePrincipal) != g.Grantee || !allowed(g, l.Operations)) {
			t.Fatalf("%s at KMS lets %s do %v; the grant is %v for %s", name, aws.ToString(l.GranteePrincipal), l.Operations, g.Operations, g.Grantee)
		}
		if row.KMSGrantID != aws.ToString(l.GrantId) {
			continue // another one under its Name: SweepOrphans's
		}
		over := row.State == broker.KMSGrantRetired || row.State == broker.KMSGrantGone
		if over && !m.ghost(d, l) {
			t.Fatalf("I7: KMS shows %s, which the database has as %s", name, row.State)
		}
		if d.key(row.Epoch).State == broker.KeyRetired && !m.ghost(d, l) {
			t.Fatalf("I3: KMS shows %s on %s, and its epoch is retired", name, l.key)
		}
	}
}

// ghost: KMS shows for a while what was retired.
func (m *machine) ghost(d *domainState, l listedGrant) bool {
	i := slices.IndexFunc(d.atKMS, func(k broker.KMSGrant) bool { return k.KMSGrantID == aws.ToString(l.GrantId) })
	return i >= 0 && !d.atKMS[i].MayExist() && m.now().Before(d.atKMS[i].EndTime.Add(m.lingers))
}

func allowed(g broker.Grant, operations []types.GrantOperation) bool {
	return !slices.ContainsFunc(operations, func(o types.GrantOperation) bool {
		return o != types.GrantOperationDescribeKey && !slices.Contains(g.Operations, string(o))
	})
}
