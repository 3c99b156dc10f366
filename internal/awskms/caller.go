package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// A Caller is whoever runs a tool at AWS: what the SDK's loader finds in
// environment and files says who that is and, unlike for a server (AssumedRoles),
// where KMS and STS are. It is safe for concurrent use.
type Caller struct {
	// ARN is the caller as STS names it: an IAM user, or a session of a role.
	ARN string
	// Account is the caller's, 12 digits.
	Account string
	// KMSEndpoint is the URL of KMS that environment or profile name; empty is
	// AWS's own.
	KMSEndpoint string

	credentials aws.CredentialsProvider
	sts         *sts.Client
}

// ErrNoCredentials says that the SDK's loader found nobody to be.
var ErrNoCredentials = errors.New("there are no AWS credentials: log in, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

// FindCaller loads credentials and asks the Region's STS whose they are. A nil
// transport is our own, which uses no proxy.
func FindCaller(ctx context.Context, region string, transport http.RoundTripper) (*Caller, error) {
	if transport == nil {
		own := newTransport(1, stsTimeout)
		own.DisableKeepAlives = true // a handful of calls
		transport = own
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region))
	if err != nil {
		return nil, fmt.Errorf("load AWS credentials: %w", err)
	}
	if _, err := loaded.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoCredentials, err)
	}
	c := &Caller{
		KMSEndpoint: aws.ToString(kms.NewFromConfig(loaded).Options().BaseEndpoint),
		credentials: loaded.Credentials,
		sts:         sts.NewFromConfig(loaded, func(o *sts.Options) { o.HTTPClient = direct{transport} }),
	}
	who, err := c.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return nil, fmt.Errorf("ask STS who the AWS credentials belong to: %w", err)
	}
	c.ARN, c.Account = aws.ToString(who.Arn), aws.ToString(who.Account)
	return c, nil
}

// Credentials are the caller's own.
func (c *Caller) Credentials() aws.CredentialsProvider { return c.credentials }

// Role gives credentials of a role, which is assumed at once, to tell whether it
// can be, and again before each session ends. The role that the caller is in
// already is not assumed: roles seldom trust themselves.
func (c *Caller) Role(ctx context.Context, role, session string) (aws.CredentialsProvider, error) {
	if c.isIn(role) {
		return c.credentials, nil
	}
	assumed := aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(c.sts, role, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = session
	}))
	if _, err := assumed.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("%s cannot assume %s: %w", c.ARN, role, err)
	}
	return assumed, nil
}

// isIn says whether the caller is a session of the role. STS names a session by
// the role's name without its path (IAM User Guide, IAM identifiers), which is
// unique in an account.
func (c *Caller) isIn(role string) bool {
	name := role[strings.LastIndexByte(role, '/')+1:]
	return parseARN(role).account == c.Account && strings.Contains(c.ARN, ":assumed-role/"+name+"/")
}
