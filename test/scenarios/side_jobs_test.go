package scenarios_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	"github.com/keybroker/keybroker/test/harness"
)

// A whole key change comes and goes while a KEY_MATERIAL job is being made: the
// caller, who sent no etag, is not told of one.
func TestKeyChangesDuringCreateJob(t *testing.T) {
	ctx := t.Context()
	meanwhile := func() {}
	b := newBench(t, harness.Config{Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".DescribeKey") {
				now := meanwhile
				meanwhile = func() {}
				now()
			}
			return next.RoundTrip(r)
		})
	}})
	if _, _, err := b.Onboard(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	meanwhile = func() {
		job := must[rotation.JobView](t)(b.ChangeKey(ctx, "acme", must[broker.KeyARN](t)(b.NewKey(ctx, "acme"))))
		if v := must[rotation.JobView](t)(b.Finish(ctx, "acme", job.ID)); v.State != rotation.Succeeded {
			t.Errorf("the change ended %s", v.State)
		}
	}
	in := rotation.NewJob{Domain: "acme", Kind: rotation.KindKeyMaterial}
	if _, err := b.Engine.CreateJob(ctx, harness.Caller, in); broker.ReasonOf(err) != broker.ReasonKeyChangeInProgress {
		t.Errorf("%v, want %s", err, broker.ReasonKeyChangeInProgress)
	}
	must[rotation.JobView](t)(b.Engine.CreateJob(ctx, harness.Caller, in))
}
