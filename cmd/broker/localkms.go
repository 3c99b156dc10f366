package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/keybroker/keybroker/internal/localkms"
)

// localkms is broker localkms: the embedded KMS alone, for anybody's aws CLI.
func (c command) localkms(ctx context.Context) (err error) {
	set := c.flags("localkms")
	address := set.String("listen", defaultKMSListen, "the loopback `address` to serve on")
	data := set.String("data", "", "the `directory` that keeps keys and grants; empty keeps them in memory")
	accounts := set.String("accounts", "", "a JSON `file` of principals: [{\"arn\",\"access_key_id\",\"secret_access_key\"}]; empty takes those of serve --dev")
	delay := set.Duration("grant-delay", devGrantDelay, "how long a new grant is hidden")
	faultPlan := set.String("faults", "", "faults as `JSON`, or @FILE; see and change them at /faults")
	if err := c.parse(set); err != nil {
		return err
	}
	faults, err := readFaults(*faultPlan)
	if err != nil {
		return err
	}
	if err := checkAddress("--listen", *address, false); err != nil {
		return usageError{err.Error()}
	}
	if *delay < 0 {
		return usagef("--grant-delay: must not be negative")
	}
	principals := devPrincipals()
	if *accounts != "" {
		if principals, err = readAccounts(*accounts); err != nil {
			return fmt.Errorf("--accounts: %w", err)
		}
	}
	l, err := listen(ctx, "--listen", *address)
	if err != nil {
		return err
	}
	kms, err := startEmbedded(l, localkms.Config{Dir: *data, Principals: principals, GrantDelay: *delay, Faults: faults})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kms.stop(ctx)) }()
	if _, err := fmt.Fprintf(c.stdout, "KMS on %s\n", kms.url); err != nil {
		return err
	}
	for _, p := range principals {
		if _, err := fmt.Fprintf(c.stdout, "  AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s  # %s\n", p.AccessKeyID, p.SecretAccessKey, p.ARN); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// readAccounts reads principals. Their access keys open this KMS alone.
func readAccounts(path string) ([]localkms.Principal, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var entries []struct {
		ARN             string `json:"arn"`
		AccessKeyID     string `json:"access_key_id"`
		SecretAccessKey string `json:"secret_access_key"`
	}
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%s: names no principal", path)
	}
	var principals []localkms.Principal
	for _, e := range entries {
		principals = append(principals, localkms.Principal(e))
	}
	return principals, nil
}
