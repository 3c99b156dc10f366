package demo

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

const fillPrefix = "key-"

// fill has the broker make many data keys, as a service with many records would:
// KMS makes each, and nobody ever sees it unwrapped.
func (r *run) fill(ctx context.Context) error {
	made, err := r.filled(ctx)
	if err != nil {
		return err
	}
	bar := r.story.bar("make keys", r.st.Keys).resume(len(made))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for i := range r.st.Keys {
		id := fmt.Sprintf("%s%06d", fillPrefix, i+1)
		if made[id] {
			continue
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			_, err := r.dataKeys.CreateDataKey(ctx, &keybrokerv1.CreateDataKeyRequest{
				Parent: domainName, DataKeyId: id,
				DataKey: &keybrokerv1.DataKey{Context: map[string]string{"record": id}},
			})
			if err != nil && !exists(err) {
				return fmt.Errorf("make %s: %w", id, err)
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
	r.story.say("broker", "made %s more data keys at KMS, which nobody has seen unwrapped", thousands(int64(r.st.Keys)))
	return nil
}

// filled gives the ids that an earlier start made.
func (r *run) filled(ctx context.Context) (map[string]bool, error) {
	made := map[string]bool{}
	err := r.eachDataKey(ctx, func(k *keybrokerv1.DataKey) error {
		if id := idOf(k); strings.HasPrefix(id, fillPrefix) {
			made[id] = true
		}
		return nil
	})
	return made, err
}

// eachDataKey lists the domain's whole inventory.
func (r *run) eachDataKey(ctx context.Context, do func(*keybrokerv1.DataKey) error) error {
	request := &keybrokerv1.ListDataKeysRequest{Parent: domainName, PageSize: 250}
	for {
		page, err := r.dataKeys.ListDataKeys(ctx, request)
		if err != nil {
			return fmt.Errorf("list data keys: %w", err)
		}
		for _, k := range page.GetDataKeys() {
			if err := do(k); err != nil {
				return err
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return nil
		}
	}
}

func idOf(k *keybrokerv1.DataKey) string {
	return strings.TrimPrefix(k.GetName(), domainName+"/dataKeys/")
}
