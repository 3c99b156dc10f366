package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/client"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// The life of the service's grant: longer than anybody leaves a demo stopped.
const grantLife = 30 * 24 * time.Hour

// Grant tokens are of use until KMS has spread the grant: "usually less than
// five minutes" (KMS Developer Guide, Grants).
const tokenLife = 5 * time.Minute

type grantTokens struct {
	tokens []string
	since  time.Time
}

// makeGrant has the broker let the service's role decrypt, for this domain. The
// tokens make the grant usable at once.
func (r *run) makeGrant(ctx context.Context) error {
	grant, err := r.grants.CreateGrant(ctx, &keybrokerv1.CreateGrantRequest{
		Parent:  domainName,
		GrantId: grantID,
		Grant: &keybrokerv1.Grant{
			GranteePrincipal: r.cfg.Service.ARN,
			Operations:       []string{"Decrypt"},
			Ttl:              durationpb.New(grantLife),
		},
		RequestId: "demo-grant",
	})
	if exists(err) {
		return r.renewGrant(ctx)
	}
	if err != nil {
		return err
	}
	r.keepTokens(grant)
	r.act()
	r.story.say("broker", "granted Decrypt to the service's role, for this domain's data only")
	return nil
}

// renewGrant gets fresh tokens for the grant that an earlier start made: perhaps
// so short a while ago that KMS does not show it yet.
func (r *run) renewGrant(ctx context.Context) error {
	grant, err := r.grants.RenewGrant(ctx, &keybrokerv1.RenewGrantRequest{
		Name: domainName + "/grants/" + grantID, Ttl: durationpb.New(grantLife),
	})
	if err != nil {
		return fmt.Errorf("renew the service's grant: %w", err)
	}
	r.keepTokens(grant)
	return nil
}

func (r *run) keepTokens(grant *keybrokerv1.Grant) {
	r.tokens.Store(&grantTokens{tokens: grant.GetGrantTokens(), since: r.cfg.Now()})
}

// newSealer makes the service's client. It forgets unwrapped keys soon, so that
// its reads go through KMS all along the key change.
func (r *run) newSealer() (*client.Client, error) {
	return client.New(client.Config{
		Broker:       r.dataKeys,
		KMS:          decrypter{r.service},
		GrantTokens:  r.currentTokens,
		MaxReadDelay: r.cfg.MaxReadDelay,
		PlaintextTTL: time.Second,
	})
}

func (r *run) currentTokens(string) []string {
	t := r.tokens.Load()
	if t == nil || r.cfg.Now().Sub(t.since) > tokenLife {
		return nil
	}
	return t.tokens
}

// sealFiles makes a data key for each file and seals the file under it.
func (r *run) sealFiles(ctx context.Context) error {
	if r.st.Files == nil {
		files, err := chooseFiles(ctx, r.st.Dir, r.cfg.Data, r.pace.files)
		if err != nil {
			return fmt.Errorf("look for files in %s: %w", r.st.Dir, err)
		}
		r.st.Files = files
		if err := r.save(); err != nil {
			return err
		}
	}
	bar := r.story.bar("seal files", len(r.st.Files))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for i, path := range r.st.Files {
		group.Go(func() error {
			if err := r.sealFile(ctx, fmt.Sprintf("file-%04d", i+1), path); err != nil {
				return fmt.Errorf("seal %s: %w", path, err)
			}
			bar.add(1)
			r.act()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	bar.end()
	r.story.say("service", "sealed %d files of %s, each under a data key of its own,\nunwrapped at KMS by its own role", len(r.st.Files), r.st.Dir)
	return nil
}

// sealFile seals a file of the directory, unless an earlier start did.
func (r *run) sealFile(ctx context.Context, id, path string) error {
	if err := ctx.Err(); err != nil || r.shelf.has(id) {
		return err
	}
	content, err := os.ReadFile(filepath.Join(r.st.Dir, filepath.FromSlash(path)))
	if errors.Is(err, os.ErrNotExist) {
		content, err = nil, nil // gone since it was chosen: an empty file is as good
	}
	if err != nil {
		return err
	}
	return r.seal(ctx, label{ID: id, Source: path, SHA256: digest(content)}, content)
}

// seal makes the data key and puts the sealed content on the shelf. Repeated, it
// finds the data key that it made before.
func (r *run) seal(ctx context.Context, l label, content []byte) error {
	_, err := r.dataKeys.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{
		Parent:    domainName,
		DataKeyId: l.ID,
		DataKey:   &keybrokerv1.DataKey{Context: map[string]string{"document": l.ID}},
		RequestId: "demo-seal-" + l.ID,
	})
	if err != nil && !exists(err) {
		return err
	}
	envelope, err := r.sealer.Seal(ctx, dataKeyName(l.ID), content, []byte(l.ID))
	if err != nil {
		return err
	}
	return r.shelf.put(l, envelope)
}

func dataKeyName(id string) string { return domainName + "/dataKeys/" + id }

// exists says that a call found what it was to make. The ids are the run's own,
// so an earlier start made it.
func exists(err error) bool { return status.Code(err) == codes.AlreadyExists }
