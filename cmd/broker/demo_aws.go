package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/pacer"
)

// awsDemo is what broker demo --kms aws takes besides: two KMS keys that somebody
// made for it, and the roles that it plays. Whoever calls is the customer.
type awsDemo struct {
	keys                       demo.OwnKeys
	registrar, worker, service string // role ARNs
	visibility                 time.Duration
	disableOld, clean          bool
}

func (o *awsDemo) flags(set *flag.FlagSet) {
	set.StringVar(&o.keys.Old, "old", "", "with --kms aws: the `ARN` of the key to begin with")
	set.StringVar(&o.keys.New, "new", "", "with --kms aws: the `ARN` of the key to change to")
	set.StringVar(&o.registrar, "registrar-role", "", "with --kms aws: the `ARN` of the broker's role that makes grants")
	set.StringVar(&o.worker, "worker-role", "", "with --kms aws: the `ARN` of the broker's role that re-encrypts")
	set.StringVar(&o.service, "service-role", "", "with --kms aws: the `ARN` of the service's role")
	set.DurationVar(&o.visibility, "grant-visibility", broker.DefaultWindows().GrantVisibility, "with --kms aws: how long KMS may take to show a grant; less than at AWS only where the environment names a KMS on loopback")
	set.BoolVar(&o.disableOld, "disable-old", false, "with --kms aws: disable the old key once it is safe to, and leave it so")
	set.BoolVar(&o.clean, "clean", false, "with --kms aws: only retire the grants that stopped runs left on both keys, and forget the run in --data")
}

func awsDemoFlags() []string {
	return []string{"old", "new", "registrar-role", "worker-role", "service-role", "grant-visibility", "disable-old", "clean"}
}

// The demo's grants at AWS have Names that begin with this deployment's; only one
// demo at a time may have a key.
const (
	awsDemoDeployment = "demo-aws"
	awsDemoNames      = "kb/" + awsDemoDeployment + "/"
	awsDemoKeys       = 100
	// awsDemoCalls is how often a demo may call KMS: at a price of $0.03 for 10,000
	// (AWS KMS pricing) less than a cent.
	awsDemoCalls = 2000
)

var (
	keyARNPattern  = regexp.MustCompile(`^arn:(aws[a-z-]*):kms:([a-z0-9-]+):([0-9]{12}):key/[A-Za-z0-9-]+$`)
	roleARNPattern = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::([0-9]{12}):role/[A-Za-z0-9+=,.@_/-]+$`)
)

// awsPlace is where a key is.
type awsPlace struct{ partition, region, account string }

// validate reports every fault that the flags alone show.
func (o *demoOptions) validateAWS() (awsPlace, error) {
	var faults []string
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	if !o.given["keys"] {
		o.keys = awsDemoKeys
	}
	most := (awsDemoCalls - 1 - demo.MaxCalls(0)) / (demo.MaxCalls(1) - demo.MaxCalls(0))
	refuse(o.keys < 0 || o.keys > most, "--keys: must be 0 to %d with --kms aws, which keeps a run below %d KMS calls", most, awsDemoCalls)

	var places []awsPlace
	for _, key := range []struct{ flag, arn string }{{"--old", o.aws.keys.Old}, {"--new", o.aws.keys.New}} {
		m := keyARNPattern.FindStringSubmatch(key.arn)
		refuse(m == nil, "%s: must be the ARN of a KMS key, arn:aws:kms:REGION:ACCOUNT:key/ID, not %q", key.flag, key.arn)
		if m != nil {
			places = append(places, awsPlace{m[1], m[2], m[3]})
		}
	}
	var at awsPlace
	if len(places) == 2 {
		at = places[0]
		refuse(o.aws.keys.Old == o.aws.keys.New, "--new: must be another key than --old")
		refuse(places[1].partition != at.partition, "--new: is in partition %s, and --old in %s: both must be in one", places[1].partition, at.partition)
		refuse(places[1].region != at.region, "--new: is in Region %s, and --old in %s: both must be in one", places[1].region, at.region)
		refuse(places[1].account != at.account, "--new: is in account %s, and --old in %s: both must be in one", places[1].account, at.account)
	}
	faults = append(faults, o.aws.roleFaults(at)...)
	if len(faults) > 0 {
		return at, usagef("%s", strings.Join(faults, "; "))
	}
	return at, nil
}

// roleFaults: one identity cannot play all parts. The broker refuses a worker that
// is the registrar, and a grantee that is either.
func (o *awsDemo) roleFaults(at awsPlace) (faults []string) {
	roles := []struct{ flag, arn string }{{"--registrar-role", o.registrar}, {"--worker-role", o.worker}, {"--service-role", o.service}}
	var missing []string
	seen := map[string]string{}
	for i, role := range roles {
		m := roleARNPattern.FindStringSubmatch(role.arn)
		switch {
		case role.arn == "":
			missing = append(missing, role.flag)
		case m == nil:
			faults = append(faults, fmt.Sprintf("%s: must be the ARN of an IAM role, arn:aws:iam::ACCOUNT:role/NAME, not %q", role.flag, role.arn))
		case seen[role.arn] != "":
			faults = append(faults, fmt.Sprintf("%s: must be another role than %s", role.flag, seen[role.arn]))
		case at.partition != "" && m[1] != at.partition:
			faults = append(faults, fmt.Sprintf("%s: is in partition %s, and the keys in %s", role.flag, m[1], at.partition))
		// A demo's policy cannot name a domain that is not made yet, and a key policy
		// that is broader than one domain passes within an account only.
		case at.account != "" && i < 2 && m[2] != at.account:
			faults = append(faults, fmt.Sprintf("%s: is in account %s, and the keys in %s: both must be in one", role.flag, m[2], at.account))
		}
		seen[role.arn] = role.flag
	}
	if missing != nil {
		faults = append(faults, strings.Join(missing, ", ")+": missing. The broker's two roles and the service's must be three, which you may assume: docs/aws.md makes them")
	}
	return faults
}

// awsCast is who plays, and where.
type awsCast struct {
	at       awsPlace
	caller   *awskms.Caller
	roles    awskms.Roles
	customer demo.Account
	service  demo.Account
	fence    *awskms.Fence
	kms      *awskms.KMS // in the broker's roles, for what is to do without a broker
}

// demoOnAWS is broker demo --kms aws.
func (c command) demoOnAWS(ctx context.Context, o demoOptions) error {
	at, err := o.validateAWS()
	if err != nil {
		return err
	}
	cast, err := o.aws.gather(ctx, at, demo.MaxCalls(o.keys))
	if err != nil {
		return err
	}
	defer cast.kms.Close()
	if o.aws.clean {
		return c.cleanDemo(ctx, o, cast)
	}
	if err := cast.checkKeys(ctx, o.aws); err != nil {
		return err
	}
	begun, err := o.open(".keybroker-demo-aws")
	if err != nil {
		return err
	}
	if !begun.Resumed {
		if err := c.retireLeftovers(ctx, o.aws.keys, cast); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(c.stdout, "On AWS, as %s. At most %d KMS calls; it takes about %s, most of it until KMS shows every grant everywhere.\n\n",
		cast.caller.ARN, demo.MaxCalls(begun.Keys), (2*o.aws.visibility + 2*time.Minute).Round(time.Minute))
	w, err := o.awsWiring(cast)
	if err != nil {
		return err
	}
	playing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-cast.fence.Full():
			cancel(fmt.Errorf("stopped: %w; --clean retires the demo's grants", &awskms.FenceError{Limit: demo.MaxCalls(begun.Keys)}))
		case <-playing.Done():
		}
	}()
	result, err := c.playDemo(playing, w, demo.Config{
		Dir: begun.Dir, Keys: begun.Keys, Data: o.data, DisableOld: o.aws.disableOld,
		KMSEndpoint: w.kmsEndpoint, Region: at.region, Transport: cast.fence,
		Customer: cast.customer, Service: cast.service,
		KMSCalls: func() int64 { return int64(cast.fence.Calls()) },
	})
	if cause := context.Cause(playing); ctx.Err() == nil && cause != nil {
		return cause
	}
	return c.endDemo(ctx, o.data, result, err)
}

// awsDemoSession stands in CloudTrail beside each call.
const awsDemoSession = "keybroker-demo"

// gather finds out who calls, and assumes the roles.
func (o *awsDemo) gather(ctx context.Context, at awsPlace, calls int) (*awsCast, error) {
	caller, err := awskms.FindCaller(ctx, at.region, nil)
	if errors.Is(err, awskms.ErrNoCredentials) {
		return nil, usageError{err.Error()}
	}
	if err != nil {
		return nil, err
	}
	loopback, err := checkKMSEndpoint(caller.KMSEndpoint)
	if err != nil {
		return nil, err
	}
	if least := broker.DefaultWindows().GrantVisibility; o.visibility < time.Second || (o.visibility < least && !loopback) {
		return nil, usagef("--grant-visibility: must be at least %v: so long AWS may take to show a grant everywhere", least)
	}
	cast := &awsCast{at: at, caller: caller, fence: awskms.NewFence(nil, calls, o.operations()...)}
	if cast.roles.Registrar, err = caller.Role(ctx, o.registrar, awsDemoSession); err != nil {
		return nil, fmt.Errorf("--registrar-role: %w", err)
	}
	if cast.roles.Worker, err = caller.Role(ctx, o.worker, awsDemoSession); err != nil {
		return nil, fmt.Errorf("--worker-role: %w", err)
	}
	cast.customer = demo.Account{ARN: caller.ARN, Credentials: caller.Credentials()}
	cast.service.ARN = o.service
	if cast.service.Credentials, err = caller.Role(ctx, o.service, awsDemoSession); err != nil {
		return nil, fmt.Errorf("--service-role: %w", err)
	}
	p, err := pacer.New(pacer.Config{Now: time.Now})
	if err != nil {
		return nil, err
	}
	cast.kms, err = awskms.New(awskms.Config{
		Registrar: cast.roles.Registrar, Worker: cast.roles.Worker,
		ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
		BaseEndpoint: caller.KMSEndpoint, Regions: []string{at.region}, Transport: cast.fence,
		Jitter: func() float64 { return 0.5 }, Pacer: p,
	}, pacer.Foreground)
	return cast, err
}

// operations are all that a demo calls: none makes, changes or deletes a key,
// unless that was asked for.
func (o *awsDemo) operations() []string {
	all := []string{
		"DescribeKey", "CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant",
		"GenerateDataKeyWithoutPlaintext", "ReEncrypt", "Decrypt",
	}
	if o.disableOld {
		all = append(all, "DisableKey")
	}
	return all
}

// checkKMSEndpoint says whether an endpoint that the environment names is on
// loopback. Beyond that it must be https.
func checkKMSEndpoint(endpoint string) (loopback bool, err error) {
	if endpoint == "" {
		return false, nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return false, fmt.Errorf("the environment's endpoint of KMS is no URL: %q", endpoint)
	}
	loopback = checkAddress("", hostPort(u), false) == nil
	if !loopback && u.Scheme != "https" {
		return false, fmt.Errorf("the environment's endpoint of KMS must be https beyond loopback: %q", endpoint)
	}
	return loopback, nil
}

// checkKeys finds out what would fail the demo, before anything is made.
func (cast *awsCast) checkKeys(ctx context.Context, o awsDemo) error {
	for _, key := range []struct{ flag, arn string }{{"--old", o.keys.Old}, {"--new", o.keys.New}} {
		m, err := cast.kms.DescribeKey(ctx, key.arn)
		switch {
		case broker.ClassOf(err) == broker.KMSNotFound:
			return fmt.Errorf("%s: KMS does not know %s", key.flag, key.arn)
		case broker.ClassOf(err) == broker.KMSDenied:
			return fmt.Errorf("%s: KMS does not let %s describe %s: give it the key policy of docs/aws.md", key.flag, o.registrar, key.arn)
		case err != nil:
			return fmt.Errorf("%s: %w: %w", key.flag, err, errors.Unwrap(err))
		case m.KeySpec != "SYMMETRIC_DEFAULT" || m.KeyUsage != "ENCRYPT_DECRYPT":
			return fmt.Errorf("%s: %s is a key of spec %s for %s, and must be a symmetric one for ENCRYPT_DECRYPT", key.flag, key.arn, m.KeySpec, m.KeyUsage)
		case m.KeyState != "Enabled":
			return fmt.Errorf("%s: %s is in state %s, and must be Enabled", key.flag, key.arn, m.KeyState)
		}
	}
	return nil
}

// awsWiring is the broker of a demo at AWS. Its windows are those of production
// where KMS has a say, and short where only the demo's own service has.
func (o *demoOptions) awsWiring(cast *awsCast) (wiring, error) {
	owner, err := uniqueOwner()
	windows := devWindows()
	windows.GrantVisibility = o.aws.visibility
	return wiring{
		database: database{path: filepath.Join(o.data, "keybroker.db")},
		does:     roles{api: true, worker: true},
		broker: broker.Config{
			Deployment: awsDemoDeployment, RegistrarRole: o.aws.registrar, WorkerRole: o.aws.worker,
			ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
			GranteeAccounts: []string{broker.RoleAccount(o.aws.service)}, Windows: windows, KMSCallTimeout: kmsCallTimeout,
			SweepOrphans: true,
		},
		owner: owner, poll: o.aws.visibility / 60, // each poll of a change that waits for KMS costs some calls
		mayBeBroad: true, roles: cast.roles, regions: []string{cast.at.region},
		kmsEndpoint: cast.caller.KMSEndpoint, kmsWire: cast.fence,
		pace: pacer.Config{Ceiling: 0.9, Floor: 5, Quota: awskms.DefaultQuota},
	}, err
}

// retireLeftovers retires the grants that runs left on the keys which were killed
// and never went on.
func (c command) retireLeftovers(ctx context.Context, keys demo.OwnKeys, cast *awsCast) error {
	retired := 0
	for _, key := range []string{keys.Old, keys.New} {
		grants, err := cast.kms.ListGrants(ctx, broker.KeyARN(key), "")
		if err != nil {
			return fmt.Errorf("list the grants on %s: %w", key, err)
		}
		for _, g := range grants {
			if !strings.HasPrefix(g.Name, awsDemoNames) {
				continue
			}
			if _, err := cast.kms.RetireGrant(ctx, broker.KeyARN(key), g.ID); err != nil {
				return fmt.Errorf("retire grant %s on %s: %w", g.ID, key, err)
			}
			retired++
		}
	}
	if retired > 0 {
		_, _ = fmt.Fprintf(c.stdout, "Retired %d grants that earlier runs had left on the keys.\n", retired)
	}
	return nil
}

// cleanDemo is --clean.
func (c command) cleanDemo(ctx context.Context, o demoOptions, cast *awsCast) error {
	if err := c.retireLeftovers(ctx, o.aws.keys, cast); err != nil {
		return err
	}
	begun, err := o.open(".keybroker-demo-aws") // refuses a directory that is not the demo's
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(c.stdout, "No grant of a demo is left on the keys; the run in %s, at stage %s, is forgotten.\n", o.data, begun.Stage)
	return os.RemoveAll(o.data)
}
