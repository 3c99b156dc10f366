package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/keybroker/keybroker/internal/localkms"
)

// localkms is broker localkms: the embedded KMS alone, with its STS, for anybody's
// aws CLI and tests.
func (c command) localkms(ctx context.Context) (err error) {
	set := c.flags("localkms")
	address := set.String("listen", defaultKMSListen, "the loopback `address` to serve on")
	data := set.String("data", "", "the `directory` that keeps keys and grants; empty keeps them in memory")
	accounts := set.String("accounts", "", "a JSON `file` of accounts, users, roles and access keys; empty is one account, with access key test and secret test for its root")
	delay := set.Duration("grant-delay", devGrantDelay, "how long a new grant is hidden")
	quota := set.Float64("quota", 0, "cryptographic `requests per second` that an account may make in a Region; 0 is no quota")
	explain := set.Bool("explain", false, "say on standard error why a request is refused; the newest refusals are at /explain always")
	faultPlan := set.String("faults", "", "faults as `JSON`, or @FILE; see and change them at /faults")
	if err := c.parse(set); err != nil {
		return err
	}
	faults, err := readFaults(*faultPlan)
	if err != nil {
		return err
	}
	if given(set)["quota"] {
		if faults.RequestsPerSecond != 0 || *quota < 0 {
			return usagef("--quota: must not be negative, nor stand beside requests_per_second in --faults")
		}
		faults.RequestsPerSecond = *quota
	}
	if err := checkAddress("--listen", *address, false); err != nil {
		return usageError{err.Error()}
	}
	if *delay < 0 {
		return usagef("--grant-delay: must not be negative")
	}
	config := localkms.Config{Dir: *data, GrantDelay: *delay, Faults: faults, Accounts: defaultAccounts()}
	if *accounts != "" {
		if config.Accounts, err = readAccounts(*accounts); err != nil {
			return fmt.Errorf("--accounts: %w", err)
		}
	}
	if *explain {
		config.Explain = c.explainDenials()
	}
	l, err := listen(ctx, "--listen", *address)
	if err != nil {
		return err
	}
	kms, err := startEmbedded(l, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kms.stop(ctx)) }()
	if err := localkmsBanner(c.stdout, kms.url, config.Accounts, *accounts == ""); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// explainDenials returns what writes refusals to standard error, one at a time.
func (c command) explainDenials() func(localkms.Decision) {
	var mu sync.Mutex
	return func(d localkms.Decision) {
		if d.Allowed {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(c.stderr, d) // there is nobody else to tell
	}
}

// What the aws CLI is told when it should be nobody in particular.
const testAccessKey = "test"

// defaultAccounts is one account whose root has a key that is easy to remember.
func defaultAccounts() []localkms.Account {
	return []localkms.Account{{
		ID:             "000000000000",
		RootAccessKeys: []localkms.AccessKey{{ID: testAccessKey, Secret: testAccessKey}},
	}}
}

func readAccounts(path string) ([]localkms.Account, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	accounts, err := localkms.ReadAccounts(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return accounts, nil
}

// localkmsBanner says where the KMS is and who may call. Secrets it does not repeat,
// but the one that everybody knows.
func localkmsBanner(w io.Writer, url string, accounts []localkms.Account, byDefault bool) error {
	var text strings.Builder
	fmt.Fprintf(&text, "KMS and STS on %s\n", url)
	if byDefault {
		fmt.Fprintf(&text, "export AWS_ENDPOINT_URL=%s AWS_REGION=%s AWS_DEFAULT_REGION=%s AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n",
			url, devRegion, devRegion, testAccessKey, testAccessKey)
	} else {
		for _, a := range accounts {
			listKeys(&text, a.ID, "root", a.RootAccessKeys)
			for _, u := range a.Users {
				listKeys(&text, a.ID, "user "+u.Name, u.AccessKeys)
			}
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func listKeys(text *strings.Builder, account, who string, keys []localkms.AccessKey) {
	for _, key := range keys {
		fmt.Fprintf(text, "  %s  account %s, %s\n", key.ID, account, who)
	}
}
