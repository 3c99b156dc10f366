package main

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// This file is all that cmd knows of the AWS SDK: awskms asks for the
// credentials of two roles, and calls KMS itself.

// roles are the credentials of the broker's two roles at AWS.
type roles struct{ registrar, worker aws.CredentialsProvider }

// devRoles are known to the embedded KMS alone.
func devRoles() roles {
	static := func(a account) aws.CredentialsProvider {
		return credentials.NewStaticCredentialsProvider(a.accessKeyID, a.secret, "")
	}
	return roles{registrar: static(devRegistrar()), worker: static(devWorker())}
}

// assumedRoles are assumed at STS with what the SDK's loader finds: environment,
// profile, web identity, container or instance. STS's client is made from options
// alone, so that no variable or file leads it elsewhere (T19).
func assumedRoles(ctx context.Context, c Config) (roles, error) {
	options := []func(*awsconfig.LoadOptions) error{awsconfig.WithRegion(c.AWSRegion)}
	if c.AWSProfile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(c.AWSProfile))
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return roles{}, fmt.Errorf("load AWS credentials: %w", err)
	}
	client := sts.New(sts.Options{Region: c.AWSRegion, Credentials: loaded.Credentials})
	assume := func(role string) aws.CredentialsProvider {
		return aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(client, role, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = "keybroker-" + c.Deployment
		}))
	}
	return roles{registrar: assume(c.RegistrarRole), worker: assume(c.WorkerRole)}, nil
}
