//go:build unix

package chaos_test

import (
	"context"
	"fmt"

	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

// takeKey picks a data key to delete, once there are more than are kept. From
// here on nobody counts on it.
func (w *workload) takeKey() (op, name string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.keys) <= w.keep {
		return "", "", false
	}
	for op, name = range w.keys {
		break
	}
	delete(w.keys, op)
	return op, name, true
}

func (w *workload) deleteKey(ctx context.Context, op, name string) error {
	id := w.op("delete")
	_, err := w.sys.do(ctx, func(ctx context.Context, r *running) error {
		_, err := r.dataKeys.DeleteDataKey(ctx, &keybrokerv1.DeleteDataKeyRequest{Name: name, RequestId: id})
		return err
	})
	if err != nil {
		return fmt.Errorf("DeleteDataKey %s of %s: %w", id, name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deleted[name] = op
	delete(w.digests, op)
	return nil
}

// takeGrant picks the oldest grant that nobody renews, once there are more than
// are kept. From here on nobody does.
func (w *workload) takeGrant() (name string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.names) <= grantsKept {
		return "", false
	}
	for i, name := range w.names {
		if w.renewing[name] == 0 {
			w.names = append(w.names[:i:i], w.names[i+1:]...)
			delete(w.renewing, name)
			return name, true
		}
	}
	return "", false
}

func (w *workload) revokeGrant(ctx context.Context, name string) error {
	id := w.op("revoke")
	_, err := w.sys.do(ctx, func(ctx context.Context, r *running) error {
		_, err := r.grants.RevokeGrant(ctx, &keybrokerv1.RevokeGrantRequest{Name: name, Reason: "chaos", RequestId: id})
		return err
	})
	if err != nil {
		return fmt.Errorf("RevokeGrant %s of %s: %w", id, name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked[name] = true
	return nil
}
