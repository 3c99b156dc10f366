package main

import (
	"fmt"
	"path/filepath"
)

// The environment that this program reads itself:
//
//	OTEL_EXPORTER_OTLP_ENDPOINT  where traces go; unset: nowhere. The exporter
//	                             reads the other OTEL_EXPORTER_OTLP_ variables.
//	KUBERNETES_SERVICE_HOST      refused under --dev
//	KEYBROKER_FAILPOINT          where serve --dev kills itself, see failpoint;
//	                             refused with --config
//	AWS_…                        see refuseForDev; with --config the AWS SDK reads
//	                             its own, for the credentials that the roles are
//	                             assumed with

// otlpEndpoint is the variable that turns the export of traces on.
const otlpEndpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"

// awsIdentity are the variables that make a process somebody at AWS (AWS SDKs
// and Tools Reference Guide, Environment variables).
func awsIdentity() []string {
	return []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	}
}

// refuseForDev keeps --dev, which authenticates nobody, away from anything real
// (T18): from clusters, and from shells that hold AWS credentials. It would not
// use them, but whoever starts it there is mistaken about one or the other.
// AWS_PROFILE is fine beside our own AWS_CONFIG_FILE, as the tour has it.
func refuseForDev(getenv func(string) string, data string) error {
	if getenv("KUBERNETES_SERVICE_HOST") != "" {
		return usagef("--dev: KUBERNETES_SERVICE_HOST is set, and a cluster is no place for it: use serve --config")
	}
	for _, name := range awsIdentity() {
		if getenv(name) != "" {
			return usagef("--dev: %s is set: unset it (env -u %s broker serve --dev), or use serve --config for real AWS", name, name)
		}
	}
	if getenv("AWS_PROFILE") != "" && !sameFile(getenv("AWS_CONFIG_FILE"), awsConfigPath(data)) {
		return usagef("--dev: AWS_PROFILE is set, and AWS_CONFIG_FILE is not %s: unset AWS_PROFILE, or use serve --config for real AWS", awsConfigPath(data))
	}
	return nil
}

func sameFile(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

// refuseEndpoints keeps the SDK's own endpoint variables from leading the calls
// for credentials elsewhere (T19). KMS's endpoint never depends on them.
func refuseEndpoints(getenv func(string) string) error {
	for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_SSO", "AWS_ENDPOINT_URL_SSO_OIDC"} {
		if getenv(name) != "" {
			return fmt.Errorf("%s is set: unset it, since a server takes endpoints from its configuration file only (kms_endpoint)", name)
		}
	}
	return nil
}
