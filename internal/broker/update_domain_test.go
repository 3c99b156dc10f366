package broker_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func TestUpdateDomain(t *testing.T) {
	b := newActive(t)
	before := b.domain("acme")
	update := func(in broker.DomainUpdate) (broker.Domain, error) {
		in.ID = "acme"
		d, keys, err := b.Broker.UpdateDomain(t.Context(), harness.Caller, in)
		if err == nil && len(keys) != 1 {
			t.Errorf("%d keys come with the domain", len(keys))
		}
		return d, err
	}
	full := broker.DomainUpdate{DisplayName: "Acme", Labels: map[string]string{"team": "a"},
		KeyAccounts: []string{harness.CustomerAccount}, ImportSources: []string{string(before.KMSKey)}}
	in := full
	in.Etag, in.Request = before.Etag(), request("UpdateDomain", "r1", "body")
	d, err := update(in)
	if err != nil {
		t.Fatal(err)
	}
	want := before
	want.DisplayName, want.Labels, want.KeyAccounts, want.ImportSources = full.DisplayName, full.Labels, full.KeyAccounts, full.ImportSources
	want.Version, want.UpdateTime = before.Version+1, d.UpdateTime
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	// Repeated, it is answered with the domain as it is now, and changes nothing.
	if again, err := update(in); err != nil || again.Version != d.Version {
		t.Errorf("repeated: version %d, %v", again.Version, err)
	}
	_, err = update(broker.DomainUpdate{DisplayName: "x", Etag: before.Etag()})
	wantReason(t, err, broker.ReasonEtagMismatch)
	// What changes nothing leaves the etag alone.
	if same, err := update(full); err != nil || same.Version != d.Version {
		t.Errorf("the same again: version %d, %v", same.Version, err)
	}

	// A mask names what is cleared, too, and leaves the rest alone.
	if d, err = update(broker.DomainUpdate{Mask: []string{"labels", "import_source_keys", "labels"}, DisplayName: "not meant"}); err != nil {
		t.Fatal(err)
	}
	want.Labels, want.ImportSources, want.Version, want.UpdateTime = nil, nil, want.Version+1, d.UpdateTime
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	audited := b.query(`select detail from audit_event where action = 'domains.update' order by seq`)
	if diff := cmp.Diff([]string{
		`{"display_name":"changed","import_source_keys":"` + string(before.KMSKey) + `","key_accounts":"111122223333","labels":"changed"}`,
		`{"import_source_keys":"","labels":"changed"}`,
	}, audited); diff != "" {
		t.Error(diff)
	}
	// The domain is still of use.
	if _, err := b.createDataKey("k"); err != nil {
		t.Error(err)
	}
}

func TestUpdateDomainRefusals(t *testing.T) {
	b := newActive(t)
	version := b.domain("acme").Version
	for name, c := range map[string]struct {
		in   broker.DomainUpdate
		want broker.Reason
	}{
		"no domain":         {broker.DomainUpdate{ID: "none", DisplayName: "x"}, broker.ReasonDomainNotFound},
		"the key":           {broker.DomainUpdate{ID: "acme", Mask: []string{"labels", "kms_key"}}, broker.ReasonKeyChangedByChangeKey},
		"an output field":   {broker.DomainUpdate{ID: "acme", Mask: []string{"state"}}, broker.ReasonFieldInvalid},
		"a part of a field": {broker.DomainUpdate{ID: "acme", Mask: []string{"labels.team"}}, broker.ReasonFieldInvalid},
		"a short account":   {broker.DomainUpdate{ID: "acme", KeyAccounts: []string{"123"}}, broker.ReasonFieldInvalid},
		"an alias":          {broker.DomainUpdate{ID: "acme", ImportSources: []string{"arn:aws:kms:us-east-1:111122223333:alias/a"}}, broker.ReasonKeyARNInvalid},
		"another Region":    {broker.DomainUpdate{ID: "acme", ImportSources: []string{"arn:aws:kms:eu-west-1:111122223333:key/a"}}, broker.ReasonKeyRegionMismatch},
		"a long name":       {broker.DomainUpdate{ID: "acme", DisplayName: string(make([]rune, 257))}, broker.ReasonFieldInvalid},
	} {
		_, _, err := b.Broker.UpdateDomain(t.Context(), harness.Caller, c.in)
		if got := broker.ReasonOf(err); got != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if got := b.domain("acme").Version; got != version {
		t.Errorf("a refused update changed the domain: version %d", got)
	}
}

// A key account that is taken off the list forbids the next change to a key of
// its; an update amid a change does not disturb it.
func TestUpdateDomainAmidKeyChange(t *testing.T) {
	b := newActive(t)
	job, next := b.beginChange("acme")
	if _, err := b.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Broker.UpdateDomain(t.Context(), harness.Caller, broker.DomainUpdate{ID: "acme", DisplayName: "new"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(t.Context(), "acme", job); err != nil {
		t.Fatal(err)
	}
	if d := b.domain("acme"); d.KMSKey != next || d.DisplayName != "new" {
		t.Errorf("%+v", d)
	}
}
