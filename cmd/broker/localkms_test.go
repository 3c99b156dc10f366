package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// broker localkms is there for whoever knows the word test.
func TestLocalKMS(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stdout, out := io.Pipe()
	var stderr strings.Builder
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"localkms", "--listen", "127.0.0.1:0", "--quota", "1000", "--explain"}, func(string) string { return "" }, nil, out, &stderr)
	}()
	lines := bufio.NewReader(stdout)
	read := func() string {
		t.Helper()
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		return strings.TrimSpace(line)
	}
	url, found := strings.CutPrefix(read(), "KMS and STS on ")
	if !found {
		t.Fatal("does not say where it is")
	}
	if got, want := read(), "export AWS_ENDPOINT_URL="+url+" AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	test := credentials.NewStaticCredentialsProvider("test", "test", "")
	who, err := sts.New(sts.Options{Region: "us-east-1", BaseEndpoint: &url, Credentials: test}).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := *who.Arn, "arn:aws:iam::000000000000:root"; got != want {
		t.Errorf("test is %s, want %s", got, want)
	}
	root := kms.New(kms.Options{Region: "us-east-1", BaseEndpoint: &url, Credentials: test})
	made, err := root.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := aws.ToString(made.KeyMetadata.Arn), "arn:aws:kms:us-east-1:000000000000:key/"; !strings.HasPrefix(got, want) {
		t.Errorf("made %s, want %s…", got, want)
	}
	if _, err := root.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{
		KeyId: made.KeyMetadata.Arn, Policy: aws.String(`{"Statement":{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}}`),
		BypassPolicyLockoutSafetyCheck: true,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Encrypt(ctx, &kms.EncryptInput{
		KeyId: made.KeyMetadata.Arn, Plaintext: []byte("x"),
	}); err == nil {
		t.Error("what the key policy denies was done")
	}
	response, err := http.Get(url + explainPath)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	stop()
	if code := <-done; code != exitOK {
		t.Errorf("ended with %d: %s", code, stderr.String())
	}
	const reason = "key policy, statement 1 denies it"
	if got := stderr.String(); strings.Count(got, "DENIED") != 1 || !strings.Contains(got, reason) {
		t.Errorf("explains: %s", got)
	}
	if !strings.Contains(string(shown), reason) {
		t.Errorf("shows: %s", shown)
	}
}
