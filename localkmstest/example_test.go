package localkmstest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/keybroker/keybroker/localkmstest"
)

// must ends an example that goes wrong. In a test that is t.Fatal.
func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// code is the code of an AWS error, by which programs tell one from another.
func code(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return fmt.Sprint(err)
	}
	return api.ErrorCode()
}

// One line gives a test a KMS and a client. It ends with the test.
func ExampleStart() {
	test := func(t *testing.T) {
		client := localkmstest.Start(t, localkmstest.Options{}).Client("")
		key, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatal(err)
		}
		// Give client and key to the code that is to be tested.
		_ = key.KeyMetadata.Arn
	}
	_ = test
}

// Outside of a test, in TestMain for instance, the server is closed by hand.
func ExampleNew() {
	ctx := context.Background()
	server := must(localkmstest.New(localkmstest.Options{}))
	defer server.Close()
	client := server.Client("")

	key := must(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.KeyId
	tenant := map[string]string{"tenant": "a"}
	sealed := must(client.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("a secret"), EncryptionContext: tenant}))

	opened := must(client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: tenant}))
	fmt.Printf("%s\n", opened.Plaintext)
	_, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	fmt.Println(code(err))
	// Output:
	// a secret
	// InvalidCiphertextException
}

// A grant lets a role of another account use a key, for one tenant's data only: what
// other emulators store, this one enforces.
func ExampleServer_Client() {
	const owner, worker = "arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:role/Worker"
	ctx := context.Background()
	server := must(localkmstest.New(localkmstest.Options{Principals: []string{owner, worker}}))
	defer server.Close()

	key := must(server.Client(owner).CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	must(server.Client(owner).CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: key, GranteePrincipal: aws.String(worker), Operations: []types.GrantOperation{types.GrantOperationGenerateDataKey},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"tenant": "a"}},
	}))
	for _, tenant := range []string{"a", "b"} {
		_, err := server.Client(worker).GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: key, KeySpec: types.DataKeySpecAes256, EncryptionContext: map[string]string{"tenant": tenant},
		})
		fmt.Println(tenant, code(err))
	}
	// Output:
	// a <nil>
	// b AccessDeniedException
}

// How does the program take a throttled KMS, a key that its owner disables, or an
// answer that never comes?
func ExampleServer_SetFaults() {
	ctx := context.Background()
	server := must(localkmstest.New(localkmstest.Options{}))
	defer server.Close()
	client := server.Client("", func(o *kms.Options) { o.RetryMaxAttempts = 1 })
	key := must(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	encrypt := func() {
		_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x")})
		fmt.Println(code(err))
	}
	for _, faults := range []localkmstest.Faults{
		{Errors: []localkmstest.ErrorFault{{Operation: "Encrypt", Code: "ThrottlingException", Rate: 1}}},
		{DisableKeys: []localkmstest.DisableFault{{Operation: "Encrypt", Call: 2}}},
	} {
		if err := server.SetFaults(faults); err != nil {
			log.Fatal(err)
		}
		encrypt()
		encrypt()
	}
	// Output:
	// ThrottlingException
	// ThrottlingException
	// <nil>
	// DisabledException
}

// A test that moves the clock sees a year go by, and the key rotate.
func ExampleOptions_clock() {
	ctx := context.Background()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	server := must(localkmstest.New(localkmstest.Options{Now: func() time.Time { return now }}))
	defer server.Close()
	client := server.Client("")
	key := must(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	must(client.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key}))

	now = now.AddDate(1, 0, 0)
	for _, r := range must(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key})).Rotations {
		fmt.Println(r.RotationDate.Format(time.DateOnly), r.RotationType)
	}
	// Output: 2027-01-01 AUTOMATIC
}

// Accounts have users and roles with policies. A role's session comes from STS, on
// the same endpoint.
func ExampleOptions_accounts() {
	ctx := context.Background()
	server := must(localkmstest.New(localkmstest.Options{Accounts: []localkmstest.Account{{
		ID:             "111122223333",
		RootAccessKeys: []localkmstest.AccessKey{{ID: "AKIAROOT", Secret: "root's"}},
		Users: []localkmstest.User{{
			Name: "alice", AccessKeys: []localkmstest.AccessKey{{ID: "AKIAALICE", Secret: "alice's"}},
			Policies: map[string]localkmstest.PolicyDocument{
				"assume": `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}}`,
			},
		}},
		Roles: []localkmstest.Role{{
			Name: "orders",
			TrustPolicy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"sts:AssumeRole",
				"Condition":{"StringEquals":{"sts:ExternalId":"tenant-4711"}}}}`,
			Policies: map[string]localkmstest.PolicyDocument{
				"keys": `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:CreateKey","Resource":"*"}}`,
			},
		}},
	}}}))
	defer server.Close()
	alice := server.Config("arn:aws:iam::111122223333:user/alice")
	_, err := kms.NewFromConfig(alice).CreateKey(ctx, &kms.CreateKeyInput{})
	fmt.Println("alice:", code(err))

	session := must(sts.NewFromConfig(alice).AssumeRole(ctx, &sts.AssumeRoleInput{
		RoleArn: aws.String("arn:aws:iam::111122223333:role/orders"), RoleSessionName: aws.String("s1"), ExternalId: aws.String("tenant-4711"),
	})).Credentials
	orders := alice.Copy()
	orders.Credentials = credentials.NewStaticCredentialsProvider(*session.AccessKeyId, *session.SecretAccessKey, *session.SessionToken)
	_, err = kms.NewFromConfig(orders).CreateKey(ctx, &kms.CreateKeyInput{})
	fmt.Println("orders:", code(err))
	// Output:
	// alice: AccessDeniedException
	// orders: <nil>
}

// Why was that refused? Start logs the same with the test.
func ExampleServer_Denials() {
	const owner, stranger = "arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:role/Stranger"
	ctx := context.Background()
	server := must(localkmstest.New(localkmstest.Options{Principals: []string{owner, stranger}}))
	defer server.Close()
	key := must(server.Client(owner).CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.Arn
	_, _ = server.Client(stranger).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key})
	for _, denial := range server.Denials() {
		fmt.Println(denial.Principal, denial.Action)
		fmt.Println(denial.Reason)
	}
	// Output:
	// arn:aws:iam::444455556666:role/Stranger kms:DescribeKey
	// because no resource-based policy allows the kms:DescribeKey action
}

// Another program is told where the KMS is, and as whom to call it.
func ExampleServer_Env() {
	server := must(localkmstest.New(localkmstest.Options{Region: "eu-central-1"}))
	defer server.Close()
	// command := exec.Command("aws", "kms", "create-key")
	// command.Env = append(os.Environ(), server.Env("")...)
	for _, pair := range server.Env("") {
		if !strings.HasPrefix(pair, "AWS_ENDPOINT_URL=") {
			fmt.Println(pair)
		}
	}
	// Output:
	// AWS_REGION=eu-central-1
	// AWS_DEFAULT_REGION=eu-central-1
	// AWS_ACCESS_KEY_ID=test
	// AWS_SECRET_ACCESS_KEY=test
	// AWS_EC2_METADATA_DISABLED=true
}
