// Package awskms is the KMS adapter: broker's ports Registrar and Worker on the
// AWS SDK for Go.
//
// What it does. It sends each call to the Region of the key it is about, in the
// role that the port stands for; gives every call its keys and both contexts by
// name; compares the key that answered with the key that was asked; keeps the
// pace of its class; and turns whatever KMS or the network answered into a
// *broker.KMSError. Nobody above it sees an error of the SDK. It also gets the
// credentials of the broker's two roles, so that cmd/broker needs no SDK.
//
// Who may call it. Only cmd/broker makes one: for callers who wait, of class
// Foreground, which tries a call again that KMS throttled or did not answer; and
// for jobs, of class Background, which tries once, since the engine decides.
//
// What it never does. It starts no goroutine, except those of the connections
// that its own transport keeps. It reads no clock but the given one. To
// it, environment and AWS's files say who the broker is (AssumedRoles), never
// where AWS is: neither AWS_ENDPOINT_URL nor a proxy variable can lead it
// elsewhere. It puts no token, blob, context value or
// context key into an error, a span or a metric. It sends no cryptographic call
// and makes no grant without the deployment's reserved context key (I4).
package awskms
