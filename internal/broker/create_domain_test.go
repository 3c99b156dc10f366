package broker_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/test/harness"
)

func TestCreateDomain(t *testing.T) {
	b := newBench(t)
	d, _, err := b.Broker.CreateDomain(t.Context(), harness.Caller, broker.NewDomain{ID: "acme", Region: "us-east-1",
		DisplayName: "Acme", KeyAccounts: []string{"111122223333"}, Labels: map[string]string{"tier": "gold"}})
	if err != nil {
		t.Fatal(err)
	}
	if d.State != broker.DomainPendingKey || d.Epoch != 0 || d.KMSKey != "" {
		t.Errorf("a new domain is %s at epoch %d under %q", d.State, d.Epoch, d.KMSKey)
	}
	if want := (broker.Pair{Key: "keybroker:domain", Value: string(d.UID)}); d.Reserved != want || len(d.UID) != 26 {
		t.Errorf("reserved pair %+v of the uid %q", d.Reserved, d.UID)
	}
	if diff := cmp.Diff(d, b.domain("acme")); diff != "" {
		t.Error(diff)
	}
}

// The reserved pair is the deployment's, with the uid in its value.
func TestReservedPairTemplates(t *testing.T) {
	b := newBench(t)
	cfg := broker.Config{Deployment: "voice", RegistrarRole: harness.RegistrarRole, WorkerRole: harness.WorkerRole,
		ReservedKey: "aws:voiceid:domain:arn", ReservedValue: "arn:aws:voiceid:{region}:111122223333:domain/{uid}",
		NewID: func() string { return "ID" }, NewUID: func() string { return "UID" }}
	voice, err := broker.New(cfg, b.Store.Broker(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := voice.CreateDomain(t.Context(), harness.Caller, broker.NewDomain{ID: "acme", Region: "us-west-2"})
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Pair{Key: "aws:voiceid:domain:arn", Value: "arn:aws:voiceid:us-west-2:111122223333:domain/UID"}
	if d.Reserved != want {
		t.Errorf("got %+v, want %+v", d.Reserved, want)
	}
	cfg.ReservedValue = "arn:aws:voiceid:{region}:111122223333:domain"
	if _, err := broker.New(cfg, b.Store.Broker(), nil, nil); err == nil {
		t.Error("a reserved value without the uid was taken: all domains would share it")
	}
}

func TestCreateDomainRefusals(t *testing.T) {
	b := newUnwired(t, broker.Config{})
	const key = "arn:aws:kms:us-east-1:111122223333:key/a"
	for name, test := range map[string]struct {
		change func(*broker.NewDomain)
		want   broker.Reason
	}{
		"no id":             {func(d *broker.NewDomain) { d.ID = "" }, broker.ReasonFieldInvalid},
		"all domains":       {func(d *broker.NewDomain) { d.ID = "-" }, broker.ReasonFieldInvalid},
		"upper case":        {func(d *broker.NewDomain) { d.ID = "Acme" }, broker.ReasonFieldInvalid},
		"a path":            {func(d *broker.NewDomain) { d.ID = "a/b" }, broker.ReasonFieldInvalid},
		"64 characters":     {func(d *broker.NewDomain) { d.ID = broker.DomainID(strings.Repeat("a", 64)) }, broker.ReasonFieldInvalid},
		"no Region":         {func(d *broker.NewDomain) { d.Region = "" }, broker.ReasonFieldInvalid},
		"a host for Region": {func(d *broker.NewDomain) { d.Region = "us-east-1.evil.test" }, broker.ReasonFieldInvalid},
		"long name":         {func(d *broker.NewDomain) { d.DisplayName = strings.Repeat("é", 129) }, broker.ReasonFieldInvalid},
		"label key":         {func(d *broker.NewDomain) { d.Labels = map[string]string{"Tier": "gold"} }, broker.ReasonFieldInvalid},
		"label value":       {func(d *broker.NewDomain) { d.Labels = map[string]string{"tier": strings.Repeat("é", 257)} }, broker.ReasonFieldInvalid},
		"bad account":       {func(d *broker.NewDomain) { d.KeyAccounts = []string{"acme"} }, broker.ReasonFieldInvalid},
		"21 accounts":       {func(d *broker.NewDomain) { d.KeyAccounts = slices.Repeat([]string{"111122223333"}, 21) }, broker.ReasonFieldInvalid},
		"21 sources":        {func(d *broker.NewDomain) { d.ImportSources = slices.Repeat([]string{key}, 21) }, broker.ReasonFieldInvalid},
		"source: an id":     {func(d *broker.NewDomain) { d.ImportSources = []string{"a"} }, broker.ReasonKeyARNInvalid},
		"source: an alias":  {func(d *broker.NewDomain) { d.ImportSources = []string{"arn:aws:kms:us-east-1:111122223333:alias/a"} }, broker.ReasonKeyARNInvalid},
		"source elsewhere":  {func(d *broker.NewDomain) { d.ImportSources = []string{"arn:aws:kms:eu-west-1:111122223333:key/a"} }, broker.ReasonKeyRegionMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			in := broker.NewDomain{ID: "acme", Region: "us-east-1", ImportSources: []string{key}}
			test.change(&in)
			_, _, err := b.CreateDomain(t.Context(), harness.Caller, in)
			wantReason(t, err, test.want)
		})
	}
}

// I8: one request id, one effect, one answer.
func TestRequestIDs(t *testing.T) {
	ctx := t.Context()
	b := newBench(t)
	create := func(caller, id, body string, d broker.DomainID) (broker.Domain, error) {
		created, _, err := b.Broker.CreateDomain(ctx, broker.Caller{Subject: caller},
			broker.NewDomain{Request: request("CreateDomain", id, body), ID: d, Region: "us-east-1"})
		return created, err
	}
	first, err := create("alice", "r1", "body", "acme")
	if err != nil {
		t.Fatal(err)
	}
	again, err := create("alice", "r1", "body", "acme")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the repeat answered otherwise: %s", diff)
	}
	_, err = create("alice", "r1", "another body", "other")
	wantReason(t, err, broker.ReasonRequestIDReused)
	_, err = create("alice", "r2", "body", "acme")
	wantReason(t, err, broker.ReasonDomainAlreadyExists)
	_, err = create("bob", "r1", "body", "bobs")
	wantReason(t, err, "") // another caller's ids are his own

	b.Clock.Advance(24 * time.Hour)
	if _, err := create("alice", "r1", "body", "acme"); err != nil {
		t.Errorf("forgotten within 24 h: %v", err)
	}
	b.Clock.Advance(time.Microsecond)
	_, err = create("alice", "r1", "body", "acme")
	wantReason(t, err, broker.ReasonDomainAlreadyExists)
	if _, err := create("alice", "r1", "another body", "other"); err != nil {
		t.Errorf("remembered for more than 24 h: %v", err)
	}
}

// A repeat tells of the keys that the domain has had since.
func TestCreateDomainRepeatedAfterAKeyChange(t *testing.T) {
	b := newBench(t)
	create := func() (broker.Domain, []broker.DomainKey) {
		t.Helper()
		d, keys, err := b.Broker.CreateDomain(t.Context(), harness.Caller,
			broker.NewDomain{Request: request("CreateDomain", "r", "body"), ID: "acme", Region: "us-east-1"})
		if err != nil {
			t.Fatal(err)
		}
		return d, keys
	}
	if _, keys := create(); len(keys) != 0 {
		t.Errorf("a new domain has keys: %+v", keys)
	}
	job, key := b.beginChange("acme")
	if _, err := b.Finish(t.Context(), "acme", job); err != nil {
		t.Fatal(err)
	}
	if d, keys := create(); d.KMSKey != key || len(keys) != 1 || keys[0].KMSKey != key || keys[0].State != broker.KeyCurrent {
		t.Errorf("the repeat tells of %s, with the keys %+v; want %s", d.KMSKey, keys, key)
	}
}

func TestConcurrentRequestsHaveOneEffect(t *testing.T) {
	b := newBench(t)
	const callers = 8
	domains := make([]broker.Domain, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			domains[i], _, errs[i] = b.Broker.CreateDomain(t.Context(), harness.Caller,
				broker.NewDomain{Request: request("CreateDomain", "r", "body"), ID: "acme", Region: "us-east-1"})
		})
	}
	wg.Wait()
	for i := range callers {
		if errs[i] != nil || domains[i].UID != domains[0].UID {
			t.Errorf("call %d: uid %q, %v; want uid %q", i, domains[i].UID, errs[i], domains[0].UID)
		}
	}
	if events := b.query(`select action, outcome from audit_event`); !slices.Equal(events, []string{"domains.create DONE"}) {
		t.Errorf("audited %q", events)
	}
}

func TestConfigFaults(t *testing.T) {
	id := func() string { return "id" }
	good := broker.Config{Deployment: "test", RegistrarRole: harness.RegistrarRole, WorkerRole: harness.WorkerRole, NewID: id, NewUID: id}
	if _, err := broker.New(good, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*broker.Config){
		"deployment":       func(c *broker.Config) { c.Deployment = "Prod/1" },
		"registrar_role":   func(c *broker.Config) { c.RegistrarRole = "keybroker" },
		"worker_role":      func(c *broker.Config) { c.WorkerRole = c.RegistrarRole },
		"reserved_key":     func(c *broker.Config) { c.ReservedKey = "a b" },
		"reserved_value":   func(c *broker.Config) { c.ReservedValue = "same for all" },
		"grantee_accounts": func(c *broker.Config) { c.GranteeAccounts = []string{"*"} },
		"NewID":            func(c *broker.Config) { c.NewID = nil },
	} {
		c := good
		change(&c)
		if _, err := broker.New(c, nil, nil, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
