package awskms_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/pacer"
)

// TestBudgets: each call is charged to the account of its role, in its key's
// Region, under the quota that AWS has for it; and what is made for a job is
// background, also where the adapter is for callers who wait.
func TestBudgets(t *testing.T) {
	pace, err := pacer.New(pacer.Config{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, &trap{})
	cfg.Pacer, cfg.RegistrarAccount, cfg.WorkerAccount, cfg.MaxAttempts = pace, "444455556666", "777788889999", 1
	k := open(t, cfg, pacer.Foreground)
	flow := pacer.NewFlow("job", 1)
	ctx := pacer.WithFlow(t.Context(), flow)
	// The answers do not matter here.
	_ = reEncrypt(t.Context(), k, keyIn(homeRegion))
	_ = reEncrypt(ctx, k, keyIn(homeRegion))
	_, _ = k.GenerateDataKeyWithoutPlaintext(ctx, broker.GenerateDataKey{Key: keyIn(homeRegion), KeySpec: "AES_256", Context: broker.Context{reservedKey: anyUID}})
	_ = reEncrypt(ctx, k, keyIn("us-east-1"))
	_, _ = k.DescribeKey(t.Context(), string(keyIn(homeRegion)))
	_, _ = k.RetireGrant(ctx, keyIn(homeRegion), "grant")

	type line struct {
		pacer.Budget
		Background uint64
	}
	var got []line
	for _, s := range pace.States() {
		got = append(got, line{s.Budget, s.BackgroundCalls})
		if s.Foreground != 0 || s.Background != 0 {
			t.Errorf("tickets are left: %+v", s)
		}
	}
	want := []line{
		{pacer.Budget{Account: "444455556666", Region: homeRegion, Quota: "DescribeKey"}, 0},
		{pacer.Budget{Account: "444455556666", Region: homeRegion, Quota: "RetireGrant"}, 1},
		{pacer.Budget{Account: "777788889999", Region: homeRegion, Quota: "cryptographic"}, 2},
		{pacer.Budget{Account: "777788889999", Region: "us-east-1", Quota: "cryptographic"}, 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("budgets (-want +got)\n%s", diff)
	}
}

// TestDefaultQuotas has the figures of the page "Request quotas" in the AWS KMS
// Developer Guide.
func TestDefaultQuotas(t *testing.T) {
	for _, c := range []struct {
		region, quota string
		want          float64
	}{
		{"us-east-1", "cryptographic", 100_000},
		{"eu-west-1", "cryptographic", 100_000},
		{"eu-central-1", "cryptographic", 20_000},
		{"eu-north-1", "cryptographic", 10_000},
		{"eu-north-1", "DescribeKey", 2000},
		{"us-east-1", "CreateGrant", 50},
		{"us-east-1", "RetireGrant", 50},
		{"us-east-1", "ListGrants", 100},
		{"us-east-1", "GetWeather", 0},
	} {
		if got := awskms.DefaultQuota(pacer.Budget{Region: c.region, Quota: c.quota}); got != c.want {
			t.Errorf("%s in %s: %v, want %v", c.quota, c.region, got, c.want)
		}
	}
}
