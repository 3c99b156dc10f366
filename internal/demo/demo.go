package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Account is a principal at AWS, with what it signs with.
type Account struct {
	ARN         string // of a role, of an account's root, or as STS names a caller
	Credentials aws.CredentialsProvider
}

// KeyedAccount is a principal with a permanent access key.
func KeyedAccount(arn, accessKeyID, secret string) Account {
	return Account{arn, aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: accessKeyID, SecretAccessKey: secret}, nil
	})}
}

// OwnKeys are two keys that the customer has already, as ARNs, instead of keys
// that a run makes. Such a run makes no key, changes none and no policy, calls
// KMS little, and deletes its domain at the end, so that no grant is left on
// them. The import is left out: it takes a third key, and changes its policy.
type OwnKeys struct {
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
}

func (k OwnKeys) given() bool { return k != OwnKeys{} }

// id gives the account's 12 digits.
func (a Account) id() string {
	parts := strings.Split(a.ARN, ":")
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}

// Config says where the broker and KMS are, and who calls them.
type Config struct {
	// Dir is the directory whose files are sealed. They are only read.
	Dir string
	// Keys is how many data keys there are beside those of files and of the
	// legacy service.
	Keys int
	// Data is the directory that keeps the run, made by Open.
	Data string
	// Out gets the story, for people; Terminal says that it is one, which a
	// progress bar may redraw.
	Out      io.Writer
	Terminal bool

	// Broker is the broker's address, host:port, reached in plaintext: loopback.
	Broker string
	// MaxReadDelay is what the broker announces.
	MaxReadDelay time.Duration
	// KMSEndpoint is the URL of KMS, Region the Region of the customer's keys. No
	// URL is AWS's own.
	KMSEndpoint, Region string
	// Transport carries the calls of KMS. Nil is a transport of the run's own.
	Transport http.RoundTripper
	// Customer owns the keys. Legacy is a role of the same account, which wrapped
	// data keys before there was a broker. Service is a role of another account.
	// A run on keys of the customer's own has no Legacy.
	Customer, Legacy, Service Account
	// DisableOld has a run on keys of the customer's own disable the old one, as
	// every other run does.
	DisableOld bool
	// GrantVisibility is how long KMS may show a grant that was retired.
	GrantVisibility time.Duration

	// KMSCalls gives how many calls KMS has had so far in this process.
	KMSCalls func() int64
	// Now tells the time, for rates and durations. Nil means time.Now.
	Now func() time.Time
	// Reached is told when a run comes to a stage, with 0, and then counts the
	// acts in it; tests stop it there. By several goroutines at once, but never
	// twice with the same number. Nil tells nobody.
	Reached func(at Stage, act int64)
}

func (c Config) validate() error {
	var faults []error
	refuse := func(bad bool, text string) {
		if bad {
			faults = append(faults, errors.New(text))
		}
	}
	refuse(c.Dir == "" || c.Data == "", "Dir and Data must be set")
	refuse(c.Keys < 0, "Keys must not be negative")
	refuse(c.Out == nil || c.KMSCalls == nil, "Out and KMSCalls must be set")
	refuse(c.Broker == "" || c.Region == "", "Broker and Region must be set")
	refuse(c.MaxReadDelay <= 0, "MaxReadDelay must be set")
	for name, a := range map[string]Account{"Customer": c.Customer, "Service": c.Service} {
		refuse(a.id() == "" || a.Credentials == nil, name+" must have an ARN and credentials")
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("configure the demo: %w", err)
	}
	return nil
}

// A Stage is a place at which a run may be stopped, and after which it goes on.
type Stage string

// The stages, in order.
const (
	StageDomain  Stage = "domain"  // the legacy key, and the domain
	StageKeys    Stage = "keys"    // the customer's two keys, with the rendered policy
	StageOnboard Stage = "onboard" // the domain's first key, and the service's grant
	StageFiles   Stage = "files"   // a data key for each file, and sealing
	StageImport  Stage = "import"  // the legacy service's data keys
	StageFill    Stage = "fill"    // more data keys
	StageChange  Stage = "change"  // ChangeKey, with traffic
	StageDisable Stage = "disable" // the old key, at KMS
	StageVerify  Stage = "verify"  // every file, every row, every grant
	StageLeave   Stage = "leave"   // the customer's own keys: no grant stays on them
	StageDone    Stage = "done"
)

// Result is what the last line of a run says, as JSON.
type Result struct {
	// Files is how many files were sealed, those of the writer included.
	Files int `json:"files"`
	// DataKeys is how many data keys the broker lists for the domain; Imported
	// those of them that came from the legacy service.
	DataKeys int `json:"data_keys"`
	Imported int `json:"imported"`
	// Moved is how many listed data keys are under the new key and were changed
	// after they were made; Left how many are still under the old key.
	Moved int `json:"moved"`
	Left  int `json:"left"`
	// LiveOldGrants is how many grants with the domain's pair KMS lists on the
	// old key, asked by the customer.
	LiveOldGrants int `json:"live_old_grants"`
	// Differing is how many files or imported data keys did not come back as they
	// went in.
	Differing int `json:"differing"`
	// ReaderErrors is how often the reader could not open a file during the change.
	ReaderErrors int `json:"reader_errors"`
	// KMSCalls is how many calls KMS answered, of everybody.
	KMSCalls int64 `json:"kms_calls"`
	// SafeToRetire is the broker's own verdict on the old key.
	SafeToRetire bool `json:"safe_to_retire"`
	// Seconds is how long the run took, without the time between a stop and the
	// next start. A start that was killed takes its last second with it; so it
	// does of the counts of calls and errors.
	Seconds float64 `json:"seconds"`
}

// Err says what keeps the run from being a success: nil if nothing does.
func (r Result) Err() error {
	var faults []string
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	refuse(r.Differing > 0, "%d came back different", r.Differing)
	refuse(r.Left > 0, "%d data keys are still under the old key", r.Left)
	refuse(r.LiveOldGrants > 0, "%d grants of the domain are live on the old key", r.LiveOldGrants)
	refuse(r.ReaderErrors > 0, "the reader failed %d times", r.ReaderErrors)
	refuse(!r.SafeToRetire, "the broker does not call the old key safe to retire")
	if len(faults) > 0 {
		return errors.New("the key change is not clean: " + strings.Join(faults, ", "))
	}
	return nil
}
