package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A trial is one run: a release and its tenant.
type trial struct {
	cluster
	*tenant
}

// play goes through the steps and writes a line about each. After a failure it
// leaves everything for somebody to look at; uninstall is the last step otherwise.
func play(ctx context.Context, s settings, out io.Writer) error {
	begun := time.Now()
	t := trial{cluster: cluster{s}}
	var err error
	if t.tenant, err = newTenant(t.cluster, fmt.Sprintf("cluster-test-%d", begun.Unix())); err != nil {
		return err
	}
	defer func() { _ = t.conn.Close() }() // the process ends
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"install", t.install},
		{"what a container may", t.walls},
		{"a domain", t.onboard},
		{"a bad configuration, a database that is not there", t.failedUpgrades},
		{"a rolling restart and a lost pod", t.restart},
		{"a rollback", t.rollback},
		{"uninstall", t.uninstall},
	} {
		said, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w\nThe release %s is left in namespace %s: look at it, then helm uninstall it", step.name, err, release, s.namespace)
		}
		if _, err := fmt.Fprintf(out, "%6.1fs  %s: %s\n", time.Since(begun).Seconds(), step.name, said); err != nil {
			return err
		}
	}
	return nil
}

func (t trial) install(ctx context.Context) (string, error) {
	if err := t.upgrade(ctx, "install"); err != nil { // helm refuses a release that is there
		return "", err
	}
	pods, err := t.pods(ctx)
	return fmt.Sprintf("%d pods are ready", len(pods)), err
}

func (t trial) walls(ctx context.Context) (string, error) {
	const token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	return "no file may be written, and there is no service account's token", errors.Join(
		t.refused(ctx, "read-only file system", "localkms", "--listen", "127.0.0.1:0", "--data", "/keys"),
		t.refused(ctx, "no such file", "check-config", "--config", token),
	)
}

// onboard makes the domain and, where there are KMS keys, gives it its first one
// and data keys.
func (t trial) onboard(ctx context.Context) (string, error) {
	if t.old == "" {
		return "made; no KMS key was named", t.create(ctx, "eu-central-1")
	}
	if err := t.create(ctx, strings.Split(t.old, ":")[3]); err != nil {
		return "", err
	}
	for _, key := range []string{t.old, t.new} {
		if t.putPolicy == "" {
			break
		}
		document, err := t.policy(ctx, key)
		if err != nil {
			return "", err
		}
		if _, err := command(ctx, document, t.putPolicy, key); err != nil {
			return "", err
		}
	}
	if err := t.toKey(ctx, t.old, func() error { return nil }); err != nil {
		return "", err
	}
	if err := t.store(ctx, "first", t.rows); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d data keys under its first key", len(t.stored)), t.check(ctx)
}

// toKey changes the key, has something happen meanwhile, and sees the change end.
func (t trial) toKey(ctx context.Context, key string, meanwhile func() error) error {
	ctx, cancel := context.WithTimeout(ctx, t.within)
	defer cancel()
	job, err := t.change(ctx, key)
	if err != nil {
		return err
	}
	return errors.Join(meanwhile(), t.finish(ctx, job))
}

// failedUpgrades have a configuration that no broker takes, and a database that is
// not there. The Job before the upgrade says so, and nothing that runs is touched.
func (t trial) failedUpgrades(ctx context.Context) (string, error) {
	const secret = release + "-nowhere"
	if _, err := t.kubectlDo(ctx, "create", "secret", "generic", secret, "--from-literal=url=postgres://nobody@127.0.0.1:1/none"); err != nil {
		return "", err
	}
	before, err := t.pods(ctx)
	if err != nil {
		return "", err
	}
	for value, words := range map[string]string{
		"config.log_level=loud":                           "log_level: must be debug, info, warn or error",
		"database.url=,database.existingSecret=" + secret: "connection refused",
	} {
		failed := t.upgrade(ctx, "upgrade", value, "migration.backoffLimit=0")
		log, err := t.kubectlDo(ctx, "logs", "job/"+release+"-migrate")
		if err != nil {
			return "", err
		}
		if failed == nil || !strings.Contains(log, words) {
			return "", errors.Join(fmt.Errorf("%s: want a failure that says %q, the Job says %q", value, words, log), failed)
		}
	}
	if _, err := t.kubectlDo(ctx, "delete", "secret", secret); err != nil {
		return "", err
	}
	after, err := t.pods(ctx)
	if err == nil && !slices.Equal(before, after) {
		err = fmt.Errorf("the pods were %v and are %v", before, after)
	}
	return "refused in words; the same pods run on", err
}

// restart replaces each pod, and then deletes one by force: in the middle of a key
// change under load, where there are KMS keys.
func (t trial) restart(ctx context.Context) (string, error) {
	both := func() error {
		if err := t.upgrade(ctx, "upgrade", "podAnnotations.keybroker-test=restarted"); err != nil {
			return err
		}
		pods, err := t.pods(ctx)
		if err != nil {
			return err
		}
		if _, err := t.kubectlDo(ctx, "delete", "pod", pods[0], "--force", "--grace-period=0"); err != nil {
			return err
		}
		_, err = t.kubectlDo(ctx, "rollout", "status", deployment, "--timeout=5m")
		return err
	}
	if t.old == "" {
		return "all pods are ready again", both()
	}
	load, end := context.WithCancel(ctx)
	defer end()
	stored := make(chan error, 1)
	go func() { stored <- t.store(load, "more", 1<<30) }()
	err := t.toKey(ctx, t.new, both)
	end()
	if err := errors.Join(err, <-stored); err != nil {
		return "", err
	}
	return fmt.Sprintf("the key change ended well, no call failed, %d data keys are under the new key", len(t.stored)), t.check(ctx)
}

func (t trial) rollback(ctx context.Context) (string, error) {
	if err := t.helmDo(ctx, "rollback", release, "1", "--wait"); err != nil {
		return "", err
	}
	pods, err := t.pods(ctx)
	return fmt.Sprintf("%d pods are ready", len(pods)), err
}

// uninstall takes the domain with it; what it did to the keys' policies stays.
func (t trial) uninstall(ctx context.Context) (string, error) {
	if err := t.shred(ctx); err != nil {
		return "", err
	}
	if err := t.helmDo(ctx, "uninstall", release, "--wait"); err != nil {
		return "", err
	}
	if _, err := t.kubectlDo(ctx, "wait", "--for=delete", "pod", "--selector", ours, "--timeout=1m"); err != nil {
		return "", err
	}
	left, err := t.kubectlDo(ctx, "get", "all,configmaps,secrets,serviceaccounts,poddisruptionbudgets", "--selector", ours, "--output", "name")
	if err == nil && left != "" {
		err = fmt.Errorf("these are left: %s", left)
	}
	return "nothing is left", err
}
