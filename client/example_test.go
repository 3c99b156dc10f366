package client_test

import (
	"context"
	"fmt"

	"github.com/keybroker/keybroker/client"
)

// A service seals a row's field, the KMS key behind it changes, and the row
// opens as before: nothing stored was touched.
func Example() {
	// In a service: keybrokerv1.NewDataKeyServiceClient(conn), and a few lines
	// around its KMS client.
	broker, kms := newFakeWorlds()

	c, err := client.New(client.Config{Broker: broker, KMS: kms})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	ctx := context.Background()
	place := []byte("tenant acme, invoices, row 7") // what the envelope belongs to
	envelope, err := c.Seal(ctx, "domains/acme/dataKeys/invoice-1", []byte("IBAN DE02"), place)
	if err != nil {
		fmt.Println(err)
		return
	}

	broker.wrap("domains/acme/dataKeys/invoice-1", "uid1", newKey) // the key change

	plaintext, err := c.Open(ctx, envelope, place)
	fmt.Printf("%s, %v\n", plaintext, err)

	_, err = c.Open(ctx, envelope, []byte("tenant acme, invoices, row 8"))
	fmt.Println(err)
	// Output:
	// IBAN DE02, <nil>
	// domains/acme/dataKeys/invoice-1: envelope is not authentic
}

func newFakeWorlds() (broker, kms *fakeWorld) {
	w := newFakeWorld()
	return w, w
}
