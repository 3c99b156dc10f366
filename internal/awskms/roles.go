package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Roles are the credentials of the broker's two roles, as Config takes them.
type Roles struct{ Registrar, Worker aws.CredentialsProvider }

// AccessKey is a permanent access key of IAM.
type AccessKey struct{ ID, Secret string }

// StaticRoles are roles with permanent access keys. AWS's roles have none: this
// is for an embedded localkms.
func StaticRoles(registrar, worker AccessKey) Roles {
	static := func(k AccessKey) aws.CredentialsProvider {
		return credentials.NewStaticCredentialsProvider(k.ID, k.Secret, "")
	}
	return Roles{Registrar: static(registrar), Worker: static(worker)}
}

// AssumeRoles says which roles to assume, and where. All but FIPS, Profile and
// Transport is needed.
type AssumeRoles struct {
	// RegistrarRole and WorkerRole are the roles' ARNs.
	RegistrarRole, WorkerRole string
	// SessionName stands in CloudTrail beside each call, 2 to 64 characters (STS
	// API Reference, AssumeRole).
	SessionName string
	// Region is the one whose STS is asked.
	Region string
	// FIPS chooses AWS's FIPS endpoint of STS, which not every Region has.
	FIPS bool
	// Profile is the profile in the SDK's files to assume the roles with. Empty
	// means what the SDK finds by itself.
	Profile string
	// Transport carries the requests to STS. Nil means our own, which uses no
	// proxy and follows no redirect. Tests hand in theirs.
	Transport http.RoundTripper
}

// stsTimeout bounds how long STS may take to answer one attempt.
const stsTimeout = 10 * time.Second

// AssumedRoles are assumed at STS, when they are first needed and again before
// they end, with the credentials that the SDK's loader finds: environment,
// profile, web identity, container or instance. This is the one place of the
// package where environment and files count, and they say who we are, not where
// STS is (T19): its clients are made from options alone, and a configured
// endpoint is refused, since the loader's own clients would go there.
func AssumedRoles(ctx context.Context, c AssumeRoles) (Roles, error) {
	if c.RegistrarRole == "" || c.WorkerRole == "" || c.SessionName == "" {
		return Roles{}, errors.New("assume roles: RegistrarRole, WorkerRole and SessionName must be set")
	}
	if !isRegion(c.Region) {
		return Roles{}, fmt.Errorf("assume roles: %q is no Region", c.Region)
	}
	if c.Transport == nil {
		own := newTransport(1, stsTimeout)
		own.DisableKeepAlives = true // two calls an hour
		c.Transport = own
	}
	client := func(as aws.CredentialsProvider) *sts.Client {
		o := sts.Options{Region: c.Region, Credentials: as, HTTPClient: direct{c.Transport}}
		if c.FIPS {
			o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
		}
		return sts.New(o)
	}
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(c.Region),
		awsconfig.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) {
			o.Client = client(nil) // the token in its body is who we are
		}),
	}
	if c.Profile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(c.Profile))
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return Roles{}, fmt.Errorf("load AWS credentials: %w", err)
	}
	if err := refuseEndpoints(ctx, loaded); err != nil {
		return Roles{}, fmt.Errorf("load AWS credentials: %w", err)
	}
	from := client(loaded.Credentials)
	assume := func(role string) aws.CredentialsProvider {
		return aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(from, role, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = c.SessionName
		}))
	}
	return Roles{Registrar: assume(c.RegistrarRole), Worker: assume(c.WorkerRole)}, nil
}

// refuseEndpoints fails if environment or files name an endpoint of a service
// that credentials come from. The SDK's names of those services are its own
// "SDK ID"s.
func refuseEndpoints(ctx context.Context, loaded aws.Config) error {
	if loaded.BaseEndpoint != nil {
		return errors.New("environment or profile sets endpoint_url: a server takes endpoints from its configuration only")
	}
	for _, source := range loaded.ConfigSources {
		s, ok := source.(interface {
			GetServiceBaseEndpoint(context.Context, string) (string, bool, error)
		})
		if !ok {
			continue
		}
		for _, id := range []string{"STS", "SSO", "SSO OIDC", "Signin"} {
			if _, found, err := s.GetServiceBaseEndpoint(ctx, id); found || err != nil {
				return fmt.Errorf("environment or profile sets an endpoint of %s: a server takes endpoints from its configuration only", id)
			}
		}
	}
	return nil
}
