//go:build unix

package chaos_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// The calls that come by at the points which key changes, data keys and grants
// do not pass. One is repeated until its outcome is known, as in the workload.

// takeChangeBack starts a key change and cancels it before its switch.
func (s *story) takeChangeBack(ctx context.Context) error {
	if err := s.awaitJob(ctx); err != nil {
		return err
	}
	if err := s.changeKey(ctx); err != nil {
		return err
	}
	// About as long as it takes to make some grants on the new key.
	if err := wait(ctx, between(s.rng, 0, time.Second)); err != nil {
		return err
	}
	op := s.work.op("cancel")
	_, err := s.sys.do(ctx, func(ctx context.Context, r *running) error {
		_, err := r.jobs.CancelReencryptionJob(ctx, &keybrokerv1.CancelReencryptionJobRequest{Name: s.job, Reason: "chaos", RequestId: op})
		return err
	})
	if status.Code(err) == codes.FailedPrecondition { // a slow machine: it has switched
		return nil
	}
	if err != nil {
		return fmt.Errorf("CancelReencryptionJob %s: %w", op, err)
	}
	s.cancelled = s.job
	s.target-- // the domain stays where it is
	return s.awaitJob(ctx)
}

// importKey has the owner make a data key at KMS, and the broker take it. A key
// change may have come between them: then the item is refused, and made anew.
func (s *story) importKey(ctx context.Context) error {
	w := s.work
	op := w.op("import")
	var made *kms.GenerateDataKeyOutput
	var d *keybrokerv1.Domain
	var pairs map[string]string
	_, err := s.sys.do(ctx, func(ctx context.Context, r *running) (err error) {
		if d, err = r.domains.GetDomain(ctx, &keybrokerv1.GetDomainRequest{Name: domainName}); err != nil {
			return err
		}
		pairs = maps.Clone(d.GetEncryptionContext())
		pairs[opKey] = op
		made, err = r.customer.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &d.KmsKey, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs})
		return err
	})
	if err != nil {
		return fmt.Errorf("the owner makes a data key: %w", err)
	}
	w.mu.Lock()
	w.digests[op] = sha256.Sum256(made.Plaintext)
	w.mu.Unlock()
	var answer *keybrokerv1.ImportDataKeysResponse
	_, err = s.sys.do(ctx, func(ctx context.Context, r *running) (err error) {
		answer, err = r.dataKeys.ImportDataKeys(ctx, &keybrokerv1.ImportDataKeysRequest{Parent: domainName, RequestId: op,
			Items: []*keybrokerv1.ImportDataKeysRequest_Item{{DataKeyId: op, CiphertextBlob: made.CiphertextBlob,
				SourceKmsKey: d.GetKmsKey(), SourceEncryptionContext: pairs}}})
		return err
	})
	if err != nil {
		return fmt.Errorf("ImportDataKeys %s: %w", op, err)
	}
	result := answer.GetResults()[0]
	if k := result.GetDataKey(); k != nil {
		w.mu.Lock()
		w.imported[op] = k.GetName()
		w.mu.Unlock()
		return nil
	}
	s.t.Logf("%s was refused: %s", op, result.GetError().GetMessage())
	return nil
}

// deleteDomain makes a domain and deletes it.
func (s *story) deleteDomain(ctx context.Context) error {
	op := s.work.op("gone")
	_, err := s.sys.do(ctx, func(ctx context.Context, r *running) error {
		_, err := r.domains.CreateDomain(ctx, &keybrokerv1.CreateDomainRequest{DomainId: op, RequestId: op,
			Domain: &keybrokerv1.Domain{DisplayName: op, Region: s.check.customer.Region}})
		return err
	})
	if err != nil {
		return fmt.Errorf("CreateDomain %s: %w", op, err)
	}
	_, err = s.sys.do(ctx, func(ctx context.Context, r *running) error {
		_, err := r.domains.DeleteDomain(ctx, &keybrokerv1.DeleteDomainRequest{Name: "domains/" + op, Reason: "chaos", RequestId: op})
		return err
	})
	if err != nil {
		return fmt.Errorf("DeleteDomain %s: %w", op, err)
	}
	return nil
}
