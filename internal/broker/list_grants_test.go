package broker_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func TestListGrants(t *testing.T) {
	b := newActive(t)
	b.onboard("beta")
	b.onboard("empty")
	for i, d := range []broker.DomainID{"acme", "acme", "acme", "beta"} {
		in := newGrant("")
		in.Domain, in.ID = d, broker.GrantID(fmt.Sprint("g", i))
		b.mustGrant(in)
	}
	if _, err := b.Broker.RevokeGrant(t.Context(), harness.Caller, broker.RevokeGrant{Domain: "acme", ID: "g1"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		domain broker.DomainID
		after  broker.GrantCursor
		limit  int
		want   []string
	}{
		{"acme", broker.GrantCursor{}, 10, []string{"acme/g0 ACTIVE 1", "acme/g1 REVOKED 0", "acme/g2 ACTIVE 1"}},
		{"acme", broker.GrantCursor{Domain: "acme", Grant: "g0"}, 1, []string{"acme/g1 REVOKED 0"}},
		{"empty", broker.GrantCursor{}, 10, nil},
		{"-", broker.GrantCursor{}, 10, []string{"acme/g0 ACTIVE 1", "acme/g1 REVOKED 0", "acme/g2 ACTIVE 1", "beta/g3 ACTIVE 1"}},
		{"-", broker.GrantCursor{Domain: "acme", Grant: "g1"}, 2, []string{"acme/g2 ACTIVE 1", "beta/g3 ACTIVE 1"}},
		{"-", broker.GrantCursor{Domain: "beta", Grant: "g3"}, 2, nil},
	} {
		views, err := b.Broker.ListGrants(t.Context(), harness.Caller, c.domain, c.after, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range views {
			got = append(got, fmt.Sprintf("%s/%s %s %d", v.DomainID, v.ID, v.State, len(v.KMSKeys)))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s after %v, %d: %s", c.domain, c.after, c.limit, diff)
		}
	}
	_, err := b.Broker.ListGrants(t.Context(), harness.Caller, "none", broker.GrantCursor{}, 10)
	wantReason(t, err, broker.ReasonDomainNotFound)
}

func TestBatchGetDataKeys(t *testing.T) {
	b := newActive(t)
	var all []broker.DataKeyID
	for i := range 5 {
		id := broker.DataKeyID(fmt.Sprint("k", i))
		if _, err := b.createDataKey(id); err != nil {
			t.Fatal(err)
		}
		all = append([]broker.DataKeyID{id}, all...)
	}
	get := func(ids ...broker.DataKeyID) ([]broker.DataKeyView, error) {
		return b.Broker.BatchGetDataKeys(t.Context(), harness.Caller, "acme", ids)
	}
	views, err := get(all...)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range views {
		one, err := b.Broker.GetDataKey(t.Context(), harness.Caller, "acme", all[i])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(one, v); diff != "" {
			t.Errorf("%d: %s", i, diff)
		}
	}
	_, err = get("k0", "gone", "k1", "lost")
	wantReason(t, err, broker.ReasonDataKeyNotFound)
	if got := resourceOf(err); got != "domains/acme/dataKeys/gone" {
		t.Errorf("the error names %q", got)
	}
	for _, ids := range [][]broker.DataKeyID{nil, {"k0", "k1", "k0"}, make([]broker.DataKeyID, 501)} {
		_, err = get(ids...)
		wantReason(t, err, broker.ReasonFieldInvalid)
	}
	_, err = b.Broker.BatchGetDataKeys(t.Context(), harness.Caller, "none", all)
	wantReason(t, err, broker.ReasonDomainNotFound)
}
