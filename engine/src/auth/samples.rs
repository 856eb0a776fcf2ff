//! Keys, signatures and cookies that the tests of this folder share. The private halves of the keys signed what is here and were thrown away.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The secret of everything that a secret made here, as text.
pub(super) const SECRET: &str = "a secret for tests only";
/// A time at which all of it is valid.
pub(super) const NOW_S: u64 = 1_700_000_000;
pub(super) const NOW_MS: u64 = NOW_S * 1_000;

pub(super) const RSA_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAuwkUwOx7L3ga1jfkuq6t
tE5RChbU2Q4p+pdy5aOCZ52qmA1JZgNAU7wkS9uDU5JinuCpeIYARcx4ye5Qhd5A
Swrt8dy1apNc0UQ79SMm9b6m699Kr/NroUm3t6quIJ3RvZxwJqocMAuro3NsI0xv
qr1Obp3va8Rx+6B38DQuHvaKBz6JIsGkUClrwVb13mDGhJ0jiHkQgAG4WupeqEY+
1tl9JwQIjrWPVrhBGqGnFaMcZDqCyXKRosVX75UlGYqMTFarYdstBPW2zOujLETQ
K+uPX66JJlbhq5uj9cTXUG05c3bY2k5SZdkDNlWJ8GHHY1Z0KqzfW1n48Q2VRrGH
fQIDAQAB
-----END PUBLIC KEY-----
";
pub(super) const EC_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEHxQcpKkmI7ykF0MwNzjXZdIfN4rO
cc9C2uX9z7DkYPpNLXOzymkhU2xigSt7i80lPkrmTL6oeAh0kGRdyCAczw==
-----END PUBLIC KEY-----
";
pub(super) const ED_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA+EVaXurCmrtpcr8g2nc2O6NA0nk3jjQBciS2ugOe6XQ=
-----END PUBLIC KEY-----
";
pub(super) const RSA_1024_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDOn/VY/7jGjXi3SOjWZOAfHXlg
YpKdGDKcUI1cEaBZFw0jcO/mISPvpl5jG+yXOMj6iaAOj5QVqiv3hzv2gtEL9tdc
R5hbXClnrKMG3Ui8Np2m2/wkwB34oegUBoy6LXttjWtUX7vEsiRfot+QvkAekpqZ
XyJswCiTxVprLj1lNwIDAQAB
-----END PUBLIC KEY-----
";
pub(super) const EC_P384_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE7GE5AsNMdZrZGAtW5n6jjPRcbRdxqcn0
u9CkpLa/8H9GXG6p00G3010f45PePr6hLLe6XR1QCUSPjqZLobtkONNtcb813MBb
P+GDRQW+fAUm5YUiZ46cX5uDcPbm0nCN
-----END PUBLIC KEY-----
";
pub(super) const RSA_SIGNATURE: &str = "B7RuPoFh_MmzrT2WT90AQ4QgIG7dskEVTm0BkIjiiLEhQumMcLwhViBElRMRTcDd8QlHrGu16Ez9ieVCt1Jg3E0KWFiHhE9OUW5BGAm5JphkpI8hIpbOapLsqq-iK-m-ZI5z24aMLmkqToFvZl2s_eYqSR73PPgmTlCL1e3y-KHhp2kZu7dbZpO4ZwY6Hd4AISWAU2AqOiqzIaOmhf3io_jcI2s8IrithrhQ9k3Vxh_My5yUbNRUMFqw062dNiP4vj-dcxS5JovK-L6MpcXOgApLOP9y8isW74qovl1CoH9m7DJcXnFuCnRhdYwPRYCEoIR7fY620dWRcjg4e1SPgw";
pub(super) const EC_SIGNATURE: &str = "bAvXxvJPJhD6XokuiQQx9O0ZAOAmgzLtfryUWyFjucdQ6Q1lmy4ov67QpDMpLtYUCLhDc3BZompUJ4fJMqCnDw";
pub(super) const ED_SIGNATURE: &str = "dSUCYS9iTC_6YZtmH_qveAzZfVJ7wT-UQKwQyBkG-TZjVErqtIqe36QVJvsrz9qXmrQZtbVB36NHDgVyGV4QAg";
/// What the three signed: `{"alg":..,"typ":"JWT"}` and `{"sub":"alice","exp":2000000000}`.
pub(super) const SIGNED_CLAIMS: &str = r#"{"sub":"alice","exp":2000000000}"#;

/// The same public keys as JSON Web Keys, without a name.
pub(super) const RSA_JWK: &str = r#"{"kty":"RSA","n":"uwkUwOx7L3ga1jfkuq6ttE5RChbU2Q4p-pdy5aOCZ52qmA1JZgNAU7wkS9uDU5JinuCpeIYARcx4ye5Qhd5ASwrt8dy1apNc0UQ79SMm9b6m699Kr_NroUm3t6quIJ3RvZxwJqocMAuro3NsI0xvqr1Obp3va8Rx-6B38DQuHvaKBz6JIsGkUClrwVb13mDGhJ0jiHkQgAG4WupeqEY-1tl9JwQIjrWPVrhBGqGnFaMcZDqCyXKRosVX75UlGYqMTFarYdstBPW2zOujLETQK-uPX66JJlbhq5uj9cTXUG05c3bY2k5SZdkDNlWJ8GHHY1Z0KqzfW1n48Q2VRrGHfQ","e":"AQAB"}"#;
pub(super) const EC_JWK: &str =
    r#"{"kty":"EC","crv":"P-256","x":"HxQcpKkmI7ykF0MwNzjXZdIfN4rOcc9C2uX9z7DkYPo","y":"TS1zs8ppIVNsYoEre4vNJT5K5ky-qHgIdJBkXcggHM8"}"#;
pub(super) const ED_JWK: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"-EVaXurCmrtpcr8g2nc2O6NA0nk3jjQBciS2ugOe6XQ"}"#;
pub(super) const RSA_1024_JWK: &str = r#"{"kty":"RSA","n":"zp_1WP-4xo14t0jo1mTgHx15YGKSnRgynFCNXBGgWRcNI3Dv5iEj76ZeYxvslzjI-omgDo-UFaor94c79oLRC_bXXEeYW1wpZ6yjBt1IvDadptv8JMAd-KHoFAaMui17bY1rVF-7xLIkX6LfkL5AHpKamV8ibMAok8Vaay49ZTc","e":"AQAB"}"#;
pub(super) const EC_P384_JWK: &str = r#"{"kty":"EC","crv":"P-384","x":"7GE5AsNMdZrZGAtW5n6jjPRcbRdxqcn0u9CkpLa_8H9GXG6p00G3010f45PePr6h","y":"LLe6XR1QCUSPjqZLobtkONNtcb813MBbP-GDRQW-fAUm5YUiZ46cX5uDcPbm0nCN"}"#;

/// Two Ed25519 keys by name; each signed `{"alg":"EdDSA","kid":..}` and [`SIGNED_CLAIMS`], and the same without the name.
pub(super) const A_JWK: &str =
    r#"{"kty":"OKP","crv":"Ed25519","x":"aJCchsS7-Ct3Hp9tVrmTINPlFmgb4Dw8j7kpqoHJbag","kid":"a","use":"sig","alg":"EdDSA"}"#;
pub(super) const A_TOKEN: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6ImEifQ.eyJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMH0.w9FIONHgXgyWgNcT72xp3zkCuKLDRZCKyKwZF8ipvu8tE0ZLJZET2dTWTzjN26BVJyYuuuUASf5Pax298_vvCw";
pub(super) const A_TOKEN_NAMELESS: &str = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMH0.PZYY25f1hdy_5RySwJHuHzwqfh45RkKgpxpqV1_0ybdu3e7XO2XGjIOJHgWsCPU-fWy7ohG7CCDEPDELpcS1Bg";
pub(super) const B_JWK: &str =
    r#"{"kty":"OKP","crv":"Ed25519","x":"7jIWknkinYPHXnA4HpVx8kMxs4BcP2gR1adnBwT7eZ4","kid":"b","use":"sig","alg":"EdDSA"}"#;
pub(super) const B_TOKEN: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6ImIifQ.eyJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMH0.Gxcyq8NUDrfe8fy0RY1hcQn58g6MZ-ZR_s_XLanWFaY1ETXyGfTMdMIWPQfo8roI4OODkkCfEkZfw65xlFttAw";

/// Cookies made by `next-auth` 4.24.15 and `@auth/core` 0.41.3 with [`SECRET`], of `{"sub":"alice","name":"Alice","email":"a@example.com","picture":null}`
/// and an `exp` in 2126.
pub(super) const NEXT_AUTH_COOKIE: &str = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..Zxj6KQvde98bUCv-.JwEcOb2D8e2bBctuIx_L4TiCP8s2XNkqzipD5qmxSURHaoMtj62oDEyPvA9iLIYJ_ySNIV6RvrLQvN2OcvcnMGO0ZXSs9qCu4qVgLqQnYHZm1xE12Nisn-LB-38CHvYmj7qi-JLN-lHaTzJa-G4c01Fs003j_iD-AKWAtj6JP7PoW915bbcq_dpS8FnvnYEJGerq6A.bFDZU-IdlUkKCFigGraNlg";
pub(super) const AUTH_JS_COOKIE: &str = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIiwia2lkIjoiZXNoV21YQWx5eC15S0dMSGxuVEZXLWxLcXdONG5lS0RDWEFxcGNKbXVXclFzRFBCWUR0SFRUM0FRZFFJa3NYam5zLWt6QUdROGEzTGRrbmFaUGdqVkEifQ..ayE43OkDtIQDxcXQjNRQSQ.TVg1UedtzKb0NuKaE8lXzFdt82nC6MXd40ejPSbMG6j-ycpUUb2mdTTxBPIM13Qj_lPWRfap0k_yJf8LUdksmBORHEFL1d38ryLTTPUKac7Zj9VzdBY0s-9olcte0sNxRFwFdqqJnpmTIlL94EAR_MJs-ZNleiJTHIgpPDclqTfQP9_-mK3JThB00bp8UWf5uqJ8EPc_QDhXIxtnEywNeg.suA69O6StW-qiV2Y_losdGtsOe2IRyRNqzNtmjp6Co8";
pub(super) const SECURE_AUTH_JS_COOKIE: &str = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIiwia2lkIjoicUlMN2NhQ25OMC1meEtEb0lPT3ZKVXNKazlpQ0lkS3J2UHFhcm80M2ZEVERaa083bkVpcVA4RmVTNlI2SUJwNTh2UmNya1Bwc3A5UV9pMlFDei1jNVEifQ..g19_ffx3nc72foXfyS_UBA.hvrxcawoRK0PO5Y1UKLbXcRIxz4gLsnTKxEokxdKuE60GMSfpOtLJJ38H0e3RXDt9Rwk3cab9TLVXkQRvrw_2QfONSDm9DB5GSZUmcRZRzraNNEhxPsqDs1J4SjZVRl-qddHudyY3PCeA5tutWx28k-XkQimAcypKaj9y3l8fpePtQkm-FCWpGARpya92bpXxpv1OHEqskZQTPPzvSuLnw.EKQoIuWgUHMnzDgldRGecc6rN2YyXZj0eOXlI0GSRJ4";

pub(super) fn part(json: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(json)
}
