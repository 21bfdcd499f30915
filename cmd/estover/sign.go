package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"estover.dev/attest"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/directory"
)

// A signing is how an approval is signed on the command line.
type signing struct {
	key  string // the file of an ssh key, which ssh-keygen signs with
	file string // of a signature that was made elsewhere; - is standard input
}

// none reports whether nothing is to be signed.
func (s signing) none() bool { return s.key == "" && s.file == "" }

// A previewed is a document as the server shows it before it is approved.
type previewed struct {
	Document    []byte `json:"document"`
	Digest      string `json:"digest"`
	Fingerprint string `json:"fingerprint"`

	Risk approval.Risk `json:"risk,omitzero"`
}

// preview fetches the document that would be approved by a choice, and works out
// for itself what stands for it.
func preview(ctx context.Context, c *client, path string, choice any) (p previewed, err error) {
	if err := c.do(ctx, http.MethodPost, path+"/document", choice, &p); err != nil {
		return p, err
	}
	if _, err := document.Parse(p.Document); err != nil {
		return p, err
	}
	digest := attest.ApprovalDigest(p.Document)
	p.Digest, p.Fingerprint = digest.String(), document.Fingerprint(p.Document)
	return p, nil
}

// tell shows a document, its eight words and its risk, before anything is signed.
func (p previewed) tell(w io.Writer) {
	fmt.Fprintf(w, "%s\nIn eight words: %s\n", p.Document, p.Fingerprint)
	if p.Risk.Level != "" {
		fmt.Fprintf(w, "Risk: %s\n", printable(p.Risk.String()))
	}
	fmt.Fprintln(w)
}

// sign signs a document, and says which of the caller's keys has.
func (s signing) sign(ctx context.Context, c *client, text []byte, stdin io.Reader, stderr io.Writer) (*attest.Assertion, error) {
	signature, err := s.signature(ctx, text, stdin, stderr)
	if err != nil {
		return nil, err
	}
	wire, err := attest.SSHSigner(signature)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.file, err)
	}
	pub, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, err
	}
	keys, err := list[directory.ApproverKey](ctx, c, "/v1/people/me/approver-keys", nil, 0)
	if err != nil {
		return nil, err
	}
	fingerprint := ssh.FingerprintSHA256(pub)
	for _, k := range keys {
		if k.Fingerprint == fingerprint {
			return &attest.Assertion{Method: attest.BySSH, Key: k.ID, Signature: signature}, nil
		}
	}
	return nil, fmt.Errorf("the key %s is not one that you approve with: `estover person key add FILE.pub`", fingerprint)
}

// signature is what ssh-keygen makes of the document, or has made elsewhere.
func (s signing) signature(ctx context.Context, text []byte, stdin io.Reader, stderr io.Writer) ([]byte, error) {
	switch {
	case s.file == "-":
		return io.ReadAll(io.LimitReader(stdin, document.MaxAssertion))
	case s.file != "":
		return os.ReadFile(s.file)
	}
	path, err := exec.LookPath("ssh-keygen")
	if err != nil {
		return nil, errors.New("there is no ssh-keygen here. Install OpenSSH, or sign elsewhere and hand the signature over with --signature")
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "-Y", "sign", "-n", attest.ApprovalNamespace, "-f", s.key)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ssh-keygen did not sign with %s: %w", s.key, err)
	}
	if !strings.HasPrefix(out.String(), "-----BEGIN SSH SIGNATURE-----") {
		return nil, errors.New("ssh-keygen is too old to sign: OpenSSH 8.2 or later is needed")
	}
	return out.Bytes(), nil
}

// accessDocument prints the bytes that would be signed, and nothing else.
func accessDocument(s *settings) *cobra.Command {
	return requestAction(s, "document", "Print the document of a request: the exact bytes that are approved and signed", func(cmd *cobra.Command, c *client, path string) error {
		p, err := preview(cmd.Context(), c, path, struct{}{})
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(p.Document)
		return err
	})
}
