package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keybroker/keybroker/internal/awskms"
	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/demo"
	"github.com/keybroker/keybroker/internal/localkms"
)

// An account is a principal that the embedded KMS knows. The access keys are no
// secrets: they open nothing but a KMS on somebody's own loopback.
type account struct{ arn, accessKeyID, secret string }

const devRegion = "us-east-1"

// The cast of --dev and the demo: three AWS accounts.
func devCustomer() account {
	return account{"arn:aws:iam::111122223333:root", "AKIADEVCUSTOMER00000", "dev-customer"}
}
func devLegacy() account {
	return account{"arn:aws:iam::111122223333:role/legacy", "AKIADEVLEGACY0000000", "dev-legacy"}
}
func devService() account {
	return account{"arn:aws:iam::222233334444:role/orders", "AKIADEVSERVICE000000", "dev-service"}
}
func devRegistrar() account {
	return account{"arn:aws:iam::999999999999:role/keybroker-registrar", "AKIADEVREGISTRAR0000", "dev-registrar"}
}
func devWorker() account {
	return account{"arn:aws:iam::999999999999:role/keybroker-worker", "AKIADEVWORKER0000000", "dev-worker"}
}

func (a account) demo() demo.Account { return demo.KeyedAccount(a.arn, a.accessKeyID, a.secret) }

// devRoles are known to the embedded KMS alone.
func devRoles() awskms.Roles {
	key := func(a account) awskms.AccessKey { return awskms.AccessKey{ID: a.accessKeyID, Secret: a.secret} }
	return awskms.StaticRoles(key(devRegistrar()), key(devWorker()))
}

func devPrincipals() []localkms.Principal {
	var all []localkms.Principal
	for _, a := range []account{devCustomer(), devLegacy(), devService(), devRegistrar(), devWorker()} {
		all = append(all, localkms.Principal{ARN: a.arn, AccessKeyID: a.accessKeyID, SecretAccessKey: a.secret})
	}
	return all
}

// Times of --dev and the demo. The embedded KMS shows a grant after its delay,
// which must be shorter than the wait for that.
const (
	devGrantDelay = 200 * time.Millisecond
	devProbe      = time.Second
	devLease      = 3 * time.Second
	devKMSTimeout = 3 * time.Second
)

func devWindows() broker.Windows {
	return broker.Windows{GrantVisibility: 2 * time.Second, MaxStoreDelay: 2 * time.Second, MaxReadDelay: 3 * time.Second}
}

// devWiring is the broker of --dev and the demo, on the embedded KMS.
func devWiring(data, kmsEndpoint string) wiring {
	return wiring{
		database: database{path: filepath.Join(data, "keybroker.db")},
		does:     roles{api: true, worker: true},
		broker: broker.Config{
			Deployment: "dev", RegistrarRole: devRegistrar().arn, WorkerRole: devWorker().arn,
			ReservedKey: broker.DefaultReservedKey, ReservedValue: broker.DefaultReservedValue,
			GranteeAccounts: []string{"222233334444"}, Windows: devWindows(), KMSCallTimeout: devKMSTimeout,
			SweepOrphans: true,
		},
		// One process has the data directory at a time (the KMS locks it), so that
		// its jobs may go on at once after a crash.
		owner: "dev", lease: devLease, probe: devProbe, poll: 200 * time.Millisecond, sweep: time.Second,
		roles: devRoles(), region: devRegion, kmsEndpoint: kmsEndpoint,
	}
}

func awsConfigPath(data string) string { return filepath.Join(data, "aws-config") }

// writeAWSConfig writes the file that lets the aws CLI be the customer or the
// service. There is no profile of the broker's: nobody needs to be it.
func writeAWSConfig(data, endpoint string) (string, error) {
	path, err := filepath.Abs(awsConfigPath(data))
	if err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString("# Written by broker serve --dev at each start.\n")
	for _, p := range []struct {
		name string
		account
	}{{"customer", devCustomer()}, {"service", devService()}} {
		fmt.Fprintf(&text, "[profile %s]\nregion = %s\nendpoint_url = %s\naws_access_key_id = %s\naws_secret_access_key = %s\n",
			p.name, devRegion, endpoint, p.accessKeyID, p.secret)
	}
	if err := os.WriteFile(path+".next", []byte(text.String()), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(path+".next", path)
}

// makeDataDir makes a directory that nobody else reads and no repository takes.
func makeDataDir(data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	if err := os.WriteFile(filepath.Join(data, ".gitignore"), []byte("*\n"), 0o600); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	return nil
}
